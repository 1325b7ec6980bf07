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
from sparse_runtime.benchmarks.gpu import encoders, gemms, linears, row_runs, rows, tune
from sparse_runtime.benchmarks.gpu.ceilings import Ceilings
from sparse_runtime.benchmarks.gpu.peers import Layer
from sparse_runtime.benchmarks.gpu.records import read
from sparse_runtime.benchmarks.gpu.surroundings import GpuSurroundings
from sparse_runtime.benchmarks.gpu.view import main as view
from sparse_runtime.ops.cuda.machine import H100
from sparse_runtime.ops.cuda.problem import Problem
from sparse_runtime.ops.cuda.timings import Timing as Time
from sparse_runtime.ops.cuda.timings import cache_file, save
from sparse_runtime.ops.cuda.tuning import TuningReport
from sparse_runtime.testing import Timing
from sparse_runtime.tools.tuning import TuneReport

AROUND = GpuSurroundings(
    "A GPU", 90, 132, 50, 80, None, "13.0", {}, "abc", "2026-01-01T00:00:00", "built 0123"
)
CONFIG = {
    "model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 140,
}  # fmt: skip
SHAPE = EncoderShape("tiny", "", 1, 32, 2, {"qkv": (96, 32), "ffn_out": (32, 48)}, CONFIG)


@pytest.fixture(autouse=True)
def no_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_once: Callable[..., dict[str, Timing | str]],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "machine_of", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in (encoders, gemms, linears, rows, tune):
        monkeypatch.setattr(module, "surroundings", lambda: AROUND)
        monkeypatch.setattr(module, "load_shape", lambda name: SHAPE)
    for module in (encoders, gemms, linears, rows):
        monkeypatch.setattr(module, "measure_ceilings", lambda: Ceilings(1.0, None, None))
    for module in (gemms, linears, rows):
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


def test_known_cases_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Layer, "make", staticmethod(partial(Layer.make, device="cpu")))
    options = ("--shape", "tiny", "--layer", "qkv", "--case", "dense bf16", "--tokens")
    path = run(monkeypatch, linears.main, tmp_path, *options, "17")
    run(monkeypatch, linears.main, tmp_path, *options, "17", "18")
    assert f"1 of 2 cases are in {path} already" in capsys.readouterr().out
    assert [line["tokens"] for line in read(path, "gpu_linear")] == [17, 18]
    run(monkeypatch, linears.main, tmp_path, *options, "17", "18", "--again")
    assert [line["tokens"] for line in read(path, "gpu_linear")] == [17, 18, 17, 18]
    # A case that ends the program is in the file, and the next call goes on behind it.
    monkeypatch.setattr(linears, "run_case", lambda layers, tokens, case: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, linears.main, tmp_path, *options, "19")
    monkeypatch.setattr(linears, "run_case", None)
    run(monkeypatch, linears.main, tmp_path, *options, "19")
    assert read(path, "gpu_linear")[-1]["error"] == "ZeroDivisionError: division by zero"


def test_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(encoders, "DEVICE", "cpu")
    monkeypatch.setattr(encoders, "_tokenizer", lambda: None)
    monkeypatch.setattr(encoders, "time_calls", partial(encoders.time_calls, seconds=1e-6))
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    options = ("--model", "tiny dense int8", "tiny 2:4 bf16", "--workload", "2x20", "ragged:4",
               "lengths:3")  # fmt: skip
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
        (model, workload) for model in models * 2 for workload in ("2x20", "lengths:3")
    ]
    assert {(line["tokens"], line["padded_tokens"]) for line in lines} == {(40, 40), (46, 84)}
    plain = {encoders.YARDSTICK, "ours"}
    assert all((line["contenders"].keys() == plain) == (at < 4) for at, line in enumerate(lines))
    for line in lines:
        assert line["contenders"]["ours"]["drift"] < 0.2
        assert line["contenders"]["ours"]["latency_p50_ms"] > 0
    last = lines[-1]["contenders"]
    assert "torchao int8 compiled with CUDA graphs" in last  # with its times, or why not
    assert "throughput_ms" in last["torch.compile bf16"]
    text = shown(monkeypatch, path, capsys)
    assert "tiny 2:4 bf16" in text and "ragged:4: skipped" in text
    run(monkeypatch, encoders.main, tmp_path, *options, "--seconds", "0")
    # What was skipped for want of a tokenizer is left.
    said = capsys.readouterr().out
    assert "8 of 12 cases are in" in said and "no time for 4 cases" in said
    run(monkeypatch, encoders.main, tmp_path, *options, "--seconds", "0", "--again")
    assert "no time for 12 cases" in capsys.readouterr().out
    assert len(read(path, "gpu_encoder")) == 10


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
    run(monkeypatch, linears.main, tmp_path, *options, "--seconds", "0", "--again")
    assert "no time for 4 cases, from tiny qkv dense bf16 17 on" in capsys.readouterr().out
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
    run(monkeypatch, gemms.main, tmp_path, *options)
    assert "2 of 2 cases are in" in capsys.readouterr().out
    assert len(read(path, "gpu_gemm")) == 2


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Under Triton's interpreter: every launcher's result is checked."""
    monkeypatch.setattr(row_runs, "DEVICE", "cpu")
    monkeypatch.setattr(row_runs, "LONGEST", 9)
    options = ("--shape", "tiny", "--tokens", "18")
    path = run(monkeypatch, rows.main, tmp_path, *options)
    lines = read(path, "gpu_rows")
    expected = [(kernel, "equal") for kernel in rows.KERNELS]
    expected += [(kernel, "ragged") for kernel in rows.KERNELS if kernel not in rows.BY_ROWS]
    assert [(line["kernel"], line["lengths"]) for line in lines] == expected
    for line in lines:
        skipped = {name for name, found in line["contenders"].items() if "skipped" in found}
        theirs = {"varlen", "varlen quantized"} | (
            {"sdpa"} if line["lengths"] == "ragged" else set()
        )
        assert skipped == (theirs if line["kernel"] == "attention" else set())
        for name, found in line["contenders"].items():
            if name not in skipped:
                assert found["cold_us"] > 0 and found["warm_us"] > 0 and "error" not in found
                assert found["copy_share"] == pytest.approx(found["bytes"] / 1e-6 / 1e9)
    # 18 rows of 32: two in bf16, weights of the norm are no one's; uint8, scales, zero points.
    norm = next(line["contenders"] for line in lines if line["kernel"] == "norm")
    assert norm["ours"]["bytes"] == 3 * 18 * 32 * 2 == norm["torch"]["bytes"]
    assert norm["ours quantized"]["bytes"] == norm["ours"]["bytes"] + 18 * (32 + 4 + 4)
    text = shown(monkeypatch, path, capsys)
    assert "18 ragged" in text and "varlen quantized" in text and "NVIDIA GPU" in text
    run(monkeypatch, rows.main, tmp_path, *options)
    assert f"{len(lines)} of {len(lines)} cases are in" in capsys.readouterr().out
    run(monkeypatch, rows.main, tmp_path, *options, "--again", "--seconds", "0")
    assert f"no time for {len(lines)} cases" in capsys.readouterr().out


def test_rows_that_are_wrong_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_runs, "DEVICE", "cpu")
    work = row_runs.Work(SHAPE, [5, 3])

    def wrong(work: row_runs.Work) -> Any:
        target = row_runs.target_for(8, 32, quantized=True)
        for tensor in target[:5]:
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(1)
        oracle = partial(torch.ones, 8, 32)
        run = row_runs.Run(int, 1, lambda: row_runs.check_target(target, lambda t: oracle(dtype=t)))
        yield "ours", lambda: run
        far = run._replace(
            check=lambda: row_runs.check_target(target, lambda t: 2 * oracle(dtype=t))
        )
        yield "further", lambda: far

    monkeypatch.setitem(rows.KERNELS, "norm", wrong)
    found = rows.run_case("norm", work, 50, None)
    assert found["ours"] == {"error": "AssertionError: rows are not quantized as PyTorch's"}
    assert found["further"]["error"].startswith("AssertionError: ours: max error")


def test_lengths_add_up() -> None:
    for tokens in rows.TOKENS:
        for kind in rows.LENGTHS:
            lengths = row_runs.lengths_of(tokens, kind)
            assert sum(lengths) == tokens and 1 <= min(lengths) <= max(lengths) <= row_runs.LONGEST
        assert lengths != row_runs.lengths_of(tokens, "equal")


def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    cache = cache_file(H100)
    loaded: list[Any] = []
    monkeypatch.setattr(
        tune.SparseModel, "from_packed", lambda packed, **options: loaded.append(options) or packed
    )
    product = Problem("int8", 96, 32, "dense", 1.0)
    found = TuningReport(path=str(cache))

    def measure(model: Any, **options: Any) -> TuneReport:
        save(cache, H100, [Time(product, 128, "triton.dense", (), 1.0, 1.0)])
        return TuneReport("cuda:0", found)

    monkeypatch.setattr(tune, "tune", measure)
    options = ("--model", "tiny dense int8", "tiny 2:4 int8")
    path = run(monkeypatch, tune.main, tmp_path / "out", *options)
    models = [line["model"] for line in read(path, "gpu_tuning")]
    assert models == ["tiny dense int8", "tiny 2:4 int8"]
    assert loaded == 2 * [{"device": "cuda", "dtype": torch.bfloat16}]
    copy = path.parent / "a-gpu-timings.json"
    assert copy.read_text() == cache.read_text()
    assert shown(monkeypatch, path, capsys) == ""  # nothing to show yet
    # A machine that is new has the results and not the times.
    cache.unlink()
    run(monkeypatch, tune.main, tmp_path / "out", *options)
    assert "2 of 2 cases are in" in capsys.readouterr().out and len(loaded) == 2
    assert cache.read_text() == copy.read_text()
    # Without either there is nothing that models could be chosen by.
    cache.unlink()
    copy.unlink()
    run(monkeypatch, tune.main, tmp_path / "out", *options)
    assert len(loaded) == 4
    run(monkeypatch, tune.main, tmp_path / "out", *options, "--seconds", "0", "--again")
    assert "no time for 2 models, from tiny dense int8 on" in capsys.readouterr().out
    assert len(loaded) == 4


def test_a_model_of_which_some_had_no_time_is_tuned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(cache_file(H100), H100, [])
    monkeypatch.setattr(tune.SparseModel, "from_packed", lambda packed, **options: packed)
    reports = [TuningReport(skipped=[(Problem("int8", 96, 32, "dense", 1.0), 128)]), TuningReport()]
    monkeypatch.setattr(tune, "tune", lambda model, **options: TuneReport("cuda:0", reports.pop(0)))
    for _ in range(3):
        path = run(monkeypatch, tune.main, tmp_path / "out", "--model", "tiny dense int8")
    assert not reports and len(read(path, "gpu_tuning")) == 2
