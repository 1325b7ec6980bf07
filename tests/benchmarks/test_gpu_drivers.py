"""The GPU benchmarks' commands, line by line, without a GPU: what they measure is made up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.benchmarks.encoder_shapes import EncoderShape
from sparse_runtime.benchmarks.gpu import encoders, gemms, linears, tune
from sparse_runtime.benchmarks.gpu.ceilings import Ceilings
from sparse_runtime.benchmarks.gpu.peers import Layer
from sparse_runtime.benchmarks.gpu.records import read
from sparse_runtime.benchmarks.gpu.surroundings import GpuSurroundings
from sparse_runtime.benchmarks.gpu.view import main as view
from sparse_runtime.ops.cuda.tuning import TuningReport
from sparse_runtime.testing import Timing
from sparse_runtime.tools.tuning import TuneReport

AROUND = GpuSurroundings("A GPU", 90, 132, 50, 80, None, "13.0", {}, "abc", "2026-01-01T00:00:00")
CONFIG = {
    "model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 140,
}  # fmt: skip
SHAPE = EncoderShape("tiny", "", 1, 32, 2, {"qkv": (96, 32), "ffn_out": (32, 48)}, CONFIG)


@pytest.fixture(autouse=True)
def no_gpu(
    monkeypatch: pytest.MonkeyPatch, call_once: Callable[..., dict[str, Timing | str]]
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in (encoders, gemms, linears, tune):
        monkeypatch.setattr(module, "surroundings", lambda: AROUND)
        monkeypatch.setattr(module, "load_shape", lambda name: SHAPE)
    for module in (encoders, gemms, linears):
        monkeypatch.setattr(module, "measure_ceilings", lambda: Ceilings(1.0, None, None))
    for module in (gemms, linears):
        monkeypatch.setattr(module, "time_kernels", call_once)


def run(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], out: Path, *options: str
) -> Path:
    """A command with these options; the file that it wrote."""
    monkeypatch.setattr(sys, "argv", ["command", *options, "--out", str(out)])
    main()
    return out / "a-gpu.jsonl"


def shown(monkeypatch: pytest.MonkeyPatch, path: Path, capsys: Any) -> str:
    """The table of a file."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["view", str(path)])
    view()
    return str(capsys.readouterr().out)


def test_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(encoders, "DEVICE", "cpu")
    monkeypatch.setattr(encoders, "_tokenizer", lambda: None)
    monkeypatch.setattr(encoders, "time_calls", partial(encoders.time_calls, seconds=1e-6))
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    options = ("--model", "tiny dense int8", "tiny 2:4 bf16", "--workload", "2x20", "ragged:4")
    path = run(monkeypatch, encoders.main, tmp_path, *options, "--rounds", "1")
    lines = read(path, "gpu_encoder")
    # Against PyTorch as it is first, then against compiled models too; nothing reads sentences.
    models = ["tiny dense int8", "tiny 2:4 bf16"]
    skipped = [line for line in lines if "skipped" in line]
    assert [(line["model"], line["workload"]) for line in skipped] == [
        (model, "ragged:4") for model in models
    ]
    assert all("no tokenizer" in line["skipped"] for line in skipped)
    lines = [line for line in lines if line not in skipped]
    assert [(line["model"], line["workload"]) for line in lines] == [
        (model, "2x20") for model in models * 2
    ]
    plain = {encoders.YARDSTICK, "ours"}
    assert all((line["contenders"].keys() == plain) == (at < 2) for at, line in enumerate(lines))
    for line in lines:
        assert line["contenders"]["ours"]["drift"] < 0.2
        assert line["contenders"]["ours"]["latency_p50_ms"] > 0
    last = lines[-1]["contenders"]
    assert "torchao int8 compiled with CUDA graphs" in last  # with its times, or why not
    assert "throughput_ms" in last["torch.compile bf16"]
    text = shown(monkeypatch, path, capsys)
    assert "tiny 2:4 bf16" in text and "ragged:4: skipped" in text
    run(monkeypatch, encoders.main, tmp_path, *options, "--seconds", "0")
    assert "no time for 8 cases" in capsys.readouterr().out
    assert len(read(path, "gpu_encoder")) == 6


def test_linears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Layer, "make", staticmethod(partial(Layer.make, device="cpu")))
    options = ("--shape", "tiny", "--tokens", "17", "--case", "dense bf16", "2:4 int8")
    path = run(monkeypatch, linears.main, tmp_path, *options)
    lines = read(path, "gpu_linear")
    assert [(line["layer"], line["case"]) for line in lines] == [
        (layer, case) for layer in SHAPE.linears for case in ("dense bf16", "2:4 int8")
    ]
    assert all("p50_us" in line["contenders"]["ours"] for line in lines)
    assert "2:4 int8" in shown(monkeypatch, path, capsys)
    run(monkeypatch, linears.main, tmp_path, *options, "--seconds", "0")
    assert "no time for 4 layers, from tiny qkv, dense bf16 on" in capsys.readouterr().out
    assert len(read(path, "gpu_linear")) == 4


def test_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    make = gemms.make_layers
    monkeypatch.setattr(
        gemms, "make_layers", lambda size, case, device: make(size, case, torch.device("cpu"))
    )
    options = ("--shape", "tiny", "--tokens", "32", "--case", "2:4 int8")
    path = run(monkeypatch, gemms.main, tmp_path, *options)
    lines = read(path, "gpu_gemm")
    assert [line["layer"] for line in lines] == list(SHAPE.linears)
    assert all("cold_us" in line["contenders"]["triton.dense"] for line in lines)
    assert "triton" in shown(monkeypatch, path, capsys)


def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text("{}")
    loaded: list[Any] = []
    monkeypatch.setattr(
        tune.SparseModel, "from_packed", lambda packed, **options: loaded.append(options) or packed
    )
    report = TuneReport("cuda:0", TuningReport(path=str(cache)))
    monkeypatch.setattr(tune, "tune", lambda model, **options: report)
    path = run(monkeypatch, tune.main, tmp_path / "out", "--model", "tiny dense int8")
    (line,) = read(path, "gpu_tuning")
    assert line["model"] == "tiny dense int8" and line["timings"] == []
    assert loaded == [{"device": "cuda", "dtype": torch.bfloat16}]
    assert (path.parent / "a-gpu-timings.json").read_text() == "{}"
    assert shown(monkeypatch, path, capsys) == ""  # nothing to show yet
