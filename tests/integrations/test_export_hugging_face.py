"""Packed models as plain checkpoints: the floats they stand for, which transformers runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

import sparse_runtime as sr
from sparse_runtime.integrations.hugging_face import export_hugging_face
from sparse_runtime.store import load

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    BertModel(BertConfig(**CONFIG)).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


# Floats that keep their type, integers that become float32, and a structure with an index.
@pytest.mark.parametrize(
    ("values", "prune", "dtype"),
    [
        ("fp32", None, torch.float32),
        ("bf16", "2:4", torch.bfloat16),
        ("int8", "unstructured@0.8", torch.float32),
        ("int4", "block:4x1@0.5", torch.float32),
    ],
)
def test_weights_are_what_is_packed(
    values: str, prune: str | None, dtype: torch.dtype, source: Path, tmp_path: Path
) -> None:
    sr.convert(source, tmp_path / "packed", values=values, prune=prune, crop="none")
    export_hugging_face(tmp_path / "packed", tmp_path / "plain")
    model, found = AutoModel.from_pretrained(
        tmp_path / "plain", output_loading_info=True, dtype="auto"
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, linear in load(tmp_path / "packed").linears.items():
        written = model.get_submodule(name).weight
        assert torch.equal(written.float(), linear.packed.dequantize()), name
    again = sr.inspect(tmp_path / "plain")
    kept = [row for row in again.matrices if row.kind == "encoder_linear"]
    assert {row.dtype for row in kept} == {str(dtype).removeprefix("torch.")}


def test_integers_survive_the_way_back(source: Path, tmp_path: Path) -> None:
    """Scales are the largest magnitude / 127 again, so the same integers are found."""
    sr.convert(source, tmp_path / "packed", prune="unstructured@0.8", crop="none")
    export_hugging_face(load(tmp_path / "packed"), tmp_path / "plain")
    sr.convert(tmp_path / "plain", tmp_path / "again", crop="none")
    again = load(tmp_path / "again").linears
    for name, linear in load(tmp_path / "packed").linears.items():
        assert torch.equal(again[name].packed.unpack(), linear.packed.unpack()), name


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path / "source")
    sr.convert(tmp_path / "source", tmp_path / "packed", values="fp32")
    export_hugging_face(tmp_path / "packed", tmp_path / "plain")
    read = BertForMaskedLM.from_pretrained(tmp_path / "plain")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)


def test_what_cannot_be_said_is_refused(source: Path, tmp_path: Path) -> None:
    sr.convert(source, tmp_path / "packed")
    packed = load(tmp_path / "packed")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or an empty directory"):
        export_hugging_face(packed, tmp_path / "plain")
    with pytest.raises(ValueError, match="out_dir: expected a path, got an empty string"):
        export_hugging_face(packed, "")
    with pytest.raises(OSError, match=r"cannot be written.*note\.txt/out"):
        export_hugging_face(packed, tmp_path / "plain" / "note.txt" / "out")
    packed.config["intermediate_size"] = 64  # as if neurons had been cropped
    with pytest.raises(ValueError, match=r"encoder\.layer\.0: expected matrices .* crop='none'"):
        export_hugging_face(packed, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "plain", "source"]
