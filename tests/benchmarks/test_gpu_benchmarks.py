"""What the GPU benchmarks keep and show; what they measure needs a GPU."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu import encoders, linears, step, surroundings, timing, view
from sparse_runtime.benchmarks.gpu.records import append, error_line, read
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.surroundings import GpuSurroundings, file_name
from sparse_runtime.benchmarks.gpu.timing import time_calls, time_kernels
from sparse_runtime.benchmarks.gpu.view import encoders as encoder_table
from sparse_runtime.benchmarks.gpu.view import fastest_peer, latest
from sparse_runtime.benchmarks.gpu.view import linears as linear_table
from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda import linear as cuda_linear
from sparse_runtime.testing import Timing, make_activations, make_packed

AROUND = GpuSurroundings(
    "A GPU", 90, 132, 50, 80, None, "13.0", {}, "abc", "2026-01-01T00:00:00", "built 0123"
)


def text_of(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def linear_line(**contenders: dict[str, Any]) -> dict[str, Any]:
    fields = {"shape": "bert-base", "layer": "qkv", "case": "dense int8", "tokens": 128}
    return {**fields, "contenders": contenders}


def test_lines_are_read_back_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, "gpu_linear", linear_line(ours={"p50_us": 1.0}), AROUND)
    append(path, "gpu_check", {"part": "tests", "exit_status": 0}, AROUND)
    (line,) = read(path, "gpu_linear")
    assert line["environment"]["commit"] == "abc" and line["tokens"] == 128
    with pytest.raises(ValueError, match="JSON"):
        append(path, "gpu_linear", linear_line(ours={"p50_us": float("nan")}), AROUND)
    assert len(path.read_text().splitlines()) == 2


def test_a_device_names_its_file() -> None:
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.jsonl"


def test_a_tree_without_history_is_known_by_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named() -> str:
        surroundings._hash_of_sources.cache_clear()
        return surroundings.commit()

    kernel = tmp_path / "kernels" / "kernel.py"
    kernel.parent.mkdir()
    kernel.write_text("1")
    monkeypatch.setattr(surroundings, "ROOT", tmp_path)
    monkeypatch.setattr(surroundings, "commit_of_checkout", lambda: None)
    monkeypatch.delenv("SPARSE_RUNTIME_COMMIT", raising=False)
    first = named()
    assert re.fullmatch(r"sources-[0-9a-f]{12}", first)
    kernel.with_suffix(".so").write_text("built")  # neither builds nor results change it
    assert named() == first
    kernel.write_text("2")
    assert named() != first
    monkeypatch.setattr(surroundings, "commit_of_checkout", lambda: "0123abc+")
    changed = named()
    assert re.fullmatch(r"0123abc\+[0-9a-f]{12}", changed)  # another change, another name
    kernel.write_text("3")
    assert named() not in (changed, "0123abc+")
    monkeypatch.setenv("SPARSE_RUNTIME_COMMIT", "4567def")
    assert named() == "4567def"
    surroundings._hash_of_sources.cache_clear()


def test_the_library_that_runs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(library: Any) -> str:
        surroundings.library.cache_clear()
        monkeypatch.setattr(cuda_loading, "load", lambda: cuda_loading.Loaded(library, None))
        return surroundings.library()

    built = tmp_path / "library.so"
    built.write_bytes(b"1")
    monkeypatch.setattr(cuda_loading, "BUILT", built)
    monkeypatch.delenv(cuda_loading.WITHOUT_VARIABLE, raising=False)
    assert named(None) == "Triton alone"
    first = named(object())
    assert re.fullmatch("built [0-9a-f]{12}", first)
    built.write_bytes(b"2")
    assert named(object()) != first
    monkeypatch.setenv(cuda_loading.WITHOUT_VARIABLE, "hopper,mma")
    assert named(object()).endswith(" without mma, hopper")
    by_nvrtc = RuntimeLibrary.__new__(RuntimeLibrary)
    by_nvrtc.nvrtc = SimpleNamespace(version=(13, 0))
    assert named(by_nvrtc) == "NVRTC 13.0 without mma, hopper"
    surroundings.library.cache_clear()


def test_a_call_goes_on_where_the_last_left_off(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "results.jsonl"
    cases = [{"case": case, "tokens": [tokens]} for case in "ab" for tokens in (1, 2)]

    def left(around: GpuSurroundings = AROUND, *, again: bool = False) -> list[dict[str, Any]]:
        return left_to_run(path, "gpu_linear", cases, dict, around, again=again)

    assert left() == cases  # there is no file
    append(path, "gpu_linear", {**cases[1], "contenders": {}}, AROUND)
    append(path, "gpu_gemm", {**cases[0], "contenders": {}}, AROUND)
    append(path, "gpu_linear", {**cases[2], "skipped": "no tokenizer"}, AROUND)
    append(path, "gpu_linear", {**cases[3], "skipped": []}, AROUND)
    capsys.readouterr()
    assert left() == [cases[0], cases[2]]
    assert f"2 of 4 cases are in {path} already (--again" in capsys.readouterr().out
    assert left(again=True) == cases
    for other in ({"commit": "def"}, {"device": "B"}, {"library": "Triton alone"}):
        assert left(replace(AROUND, **other)) == cases
    assert left(replace(AROUND, time="later")) == [cases[0], cases[2]]
    assert capsys.readouterr().out.count("already") == 1


def test_a_case_that_ends_the_program_is_not_run_again_but_one_without_time_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    for case, error in (("a", RuntimeError("illegal address")), ("b", KeyboardInterrupt())):
        with pytest.raises(type(error)), end_is_kept(path, "gpu_linear", {"case": case}, AROUND):
            raise error
    (line,) = read(path, "gpu_linear")
    assert (line["case"], line["error"]) == ("a", "RuntimeError: illegal address")
    cases = [{"case": case} for case in "ab"]
    assert left_to_run(path, "gpu_linear", cases, dict, AROUND, again=False) == cases[1:]


def test_steps_are_kept_and_shown_with_why_they_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(step, "surroundings", lambda: AROUND)
    for how in (["tests", "--exit-status", "0"], ["tuning", "--exit-status", "124"],
                ["sanitizer", "--skipped", "no compute-sanitizer"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["step", *how, "--out", str(tmp_path)])
        step.main()
    path = tmp_path / "a-gpu.jsonl"
    assert [line["exit_status"] for line in read(path, "gpu_check")] == [0, 124, None]
    said = capsys.readouterr().out
    assert "sanitizer: skipped, no compute-sanitizer on A GPU, recorded in" in said
    monkeypatch.setattr(sys, "argv", ["view", str(path)])
    view.main()
    shown = capsys.readouterr().out
    for text in ("tests: passed", "tuning: FAILED (124)", "sanitizer: skipped, no compute-san"):
        assert f"{text}" in shown and "(abc, built 0123)" in shown


def test_the_latest_of_equal_cases_counts_and_the_fastest_peer() -> None:
    first = linear_line(ours={"p50_us": 9.0})
    second = linear_line(ours={"p50_us": 5.0}, slow={"p50_us": 20.0}, quick={"p50_us": 10.0})
    assert latest([first, second], "case", "tokens") == [second]
    assert fastest_peer(second["contenders"], "p50_us") == "quick"
    assert fastest_peer({"ours": {"p50_us": 1.0}, "other": {"error": "no"}}, "p50_us") is None


def test_tables_show_ratios_errors_and_no_bare_products() -> None:
    found = linear_line(ours={"p50_us": 5.0}, peer={"p50_us": 10.0})
    found["contenders"]["cublas int8 product"] = {"p50_us": 1.0}
    shown = text_of(linear_table([found]))
    assert "2.00" in shown and "peer" in shown and "product" not in shown
    failed = linear_line(ours={"error": "RuntimeError: wrong"}, peer={"p50_us": 10.0})
    assert "RuntimeError: wrong" in text_of(linear_table([failed]))
    fault = {**linear_line(), "error": "RuntimeError: illegal address"}
    assert "illegal address" in text_of(linear_table([fault]))
    line = {"model": "m", "workload": "1x128", "tokens": 128, "compiled": False}
    line["contenders"] = {"ours": {"latency_p50_ms": 0.25}, "peer": {"latency_p50_ms": 1.0}}
    assert "4.00" in text_of(encoder_table([line]))
    fault = {**line, "contenders": {}, "error": "RuntimeError: illegal address"}
    assert "illegal address" in text_of(encoder_table([line, fault]))
    assert "4.00" in text_of(encoder_table([line, {**fault, "compiled": True}]))


@pytest.mark.parametrize("case", linears.CASES)
def test_every_case_of_a_layer_packs_and_has_a_dense_peer(case: str) -> None:
    names = [name for name, _ in linears.contenders(case)]
    assert names[:2] == ["ours", "cublas bf16"] and len(set(names)) == len(names)
    # What fails while a graph is captured may take those behind it along.
    suspects = [name for name in names if name.startswith(("cusparselt", "torch bsr"))]
    assert not suspects or names[-len(suspects) :] == suspects
    structure, _, sparsity = case.split()[0].partition("@")
    packed = make_packed(
        (128, 128), structure, float(sparsity) if sparsity else None, values=case.split()[1]
    )
    assert str(packed.spec.structure) == structure


# Ours on the reference: what this runs are the benchmark's own lines.
@pytest.mark.parametrize("case", ["dense bf16", "2:4 int8", "unstructured@0.5 int8"])
def test_a_case_runs_on_copies_and_ours_is_checked(
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    call_once: Callable[..., dict[str, Timing | str]],
) -> None:
    monkeypatch.setattr(linears, "time_kernels", call_once)
    first = linears.Layer.make((32, 64), case, "cpu")
    layers = [first, first.copy()]
    found = linears.run_case(layers, 20, case)
    assert found["copies"] == 2
    assert {"ours", "cublas bf16"} <= {n for n, c in found["contenders"].items() if "p50_us" in c}
    assert linears.prepared(first, torch.bfloat16) is linears.prepared(first, torch.bfloat16)
    assert linears.prepared(first, torch.bfloat16) is not linears.prepared(
        layers[1], torch.bfloat16
    )
    linears.forget()
    monkeypatch.setattr(linears, "ours", lambda layer, x: lambda: layer.weight.new_ones(20, 32))
    error = linears.run_case(layers, 20, case)["contenders"]["ours"]["error"]
    assert error.startswith("AssertionError: ours")


def test_who_takes_no_part_says_why(
    monkeypatch: pytest.MonkeyPatch,
    call_once: Callable[..., dict[str, Timing | str]],
) -> None:
    monkeypatch.setattr(linears, "time_kernels", call_once)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # as if it were not installed
    layers = [linears.Layer.make((32, 64), "dense int8", "cpu")]
    found = linears.run_case(layers, 16, "dense int8")["contenders"]
    reason = "torch._int_mm takes 17 rows or more on CUDA"
    assert found["cublas int8 product"] == {"skipped": reason}
    assert "torchao" in found["torchao int8 compiled"]["skipped"]
    assert "p50_us" in found["cublas bf16"] and "timed" not in found["cublas bf16"]


def test_what_no_graph_can_hold_says_that_it_was_queued(
    monkeypatch: pytest.MonkeyPatch,
    call_once: Callable[..., dict[str, Timing | str]],
) -> None:
    asked: list[Any] = []

    def once(calls: Any, **options: Any) -> dict[str, Timing | str]:
        asked.append(options)
        return call_once(calls)

    monkeypatch.setattr(linears, "time_kernels", once)
    monkeypatch.setattr(linears, "cusparse_fp32", linears.cublas_bf16)
    case = "unstructured@0.5 int8"
    layers = [linears.Layer.make((32, 64), case, "cpu")]
    found = linears.run_case(layers, 20, case)["contenders"]
    assert {n for n, c in found.items() if c.get("timed") == "queued"} == {"cusparse fp32"}
    assert asked == [{"uncaptured": linears.UNCAPTURED}]


def test_ours_has_a_workspace_before_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linears.Layer.make((32, 64), "dense int8", "cpu")
    weight = LinearWeight("layer", layer.packed, layer.bias.float())
    request = LinearRequest((weight,), torch.device("cpu"), torch.bfloat16)
    own = cuda_linear.CudaLinear(request)  # in the interpreter
    monkeypatch.setattr(linears, "prepared", lambda layer, dtype: own)
    x = make_activations(20, 64, dtype=torch.bfloat16)
    expected = own(x)
    linears.workspace.cache_clear()
    call = linears.ours(layer, x)
    assert linears.ours(layer.copy(), x).args[-1] is call.args[-1]
    linears.workspace.cache_clear()
    monkeypatch.setattr(cuda_linear, "workspace_for", None)  # nothing is made by the call
    assert torch.equal(call(), expected)


class FakeEvent:
    """Of a GPU that takes a second a call."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


def test_what_no_graph_can_hold_is_timed_behind_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(calls: Any) -> timing.Series:
        raise RuntimeError("operation not permitted when stream is capturing")

    def call() -> None:
        FakeEvent.clock += 1.0

    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", waits.append)
    monkeypatch.setattr(timing, "captured", captured)
    contenders = {"queued": [call] * 3, "captured": [call]}
    found = time_kernels(contenders, rounds=2, uncaptured=["queued"])
    assert found["queued"] == Timing((1.0, 1.0))
    assert found["captured"] == "RuntimeError: operation not permitted when stream is capturing"
    assert len(waits) == 3 and min(waits) > 0


def test_encoders_name_shapes_that_exist_and_the_yardstick_comes_first() -> None:
    for model in encoders.MODELS:
        shape, _, values = model.split()
        assert load_shape(shape).linears and values in encoders.MAX_DRIFT
    for compiled in (False, True):
        found = encoders.contenders(None, {}, compiled=compiled)  # makers run later
        names = [name for name, _ in found]
        assert names[:2] == [encoders.YARDSTICK, "ours"] and (len(names) > 2) == compiled


def test_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ran: list[str] = []
    calls = {name: lambda name=name: ran.append(name) for name in ("first", "second")}
    timings = time_calls(calls, rounds=2, seconds=1e-5)
    assert timings.keys() == calls.keys()
    for latency, throughput in timings.values():
        assert 0 < latency.median < 1 and len(throughput.samples) == 2
    turns = [name for i, name in enumerate(ran) if i == 0 or ran[i - 1] != name]
    assert turns == ["first", "second", "first", "second", "first"]


def test_an_error_is_one_line() -> None:
    line = error_line(RuntimeError("first\nsecond"))
    assert line == "RuntimeError: first"
    json.dumps(line)


def test_the_check_runs_what_there_is(checkout_root: Path) -> None:
    script = (checkout_root / "benchmarks/gpu_check.sh").read_text()
    modules = set(re.findall(r"-m (sparse_runtime[\w.]+)", script))
    assert modules and all(find_spec(module) is not None for module in modules), modules
    files = re.findall(r"tests/[\w/*]+\.py", script)
    found = [path for pattern in files for path in checkout_root.glob(pattern)]
    assert len(found) > len(files)


# Where the sanitizer sees each file of kernels: a test of which at least one case is marked.
SANITIZED = {
    "attention/attention": "attention::test_every_target",
    "block/block": "block::test_parts_of_rows_add_up",
    "dense/dense": "linear::test_zero_points_equal_the_reference",
    "embedding/embedding": "rows::test_the_last_rows_of_tables",
    "layer_norm/layer_norm": "rows::test_norms_into_every_target",
    "linear/epilogue": "linear::test_output_quantizers_equal_the_reference",
    "linear/epilogue_rows": "epilogue_rows::test_integers_end_as_the_references",
    "linear/linear": "linear::test_zero_points_equal_the_reference",
    "nm/nm": "nm::test_weights_that_end_within_a_word",
    "padding/pool": "padding::test_pool_of_hard_numbers",
    "padding/repad": "padding::test_repad_equals_the_reference",
    "padding/scan": "padding::test_slices_of_wider_batches_and_shared_positions",
    "padding/unpad": "padding::test_slices_of_wider_batches_and_shared_positions",
    "quantize/quantize": "quantize::test_static_rows_equal_the_reference",
    "quantize/quantize_rows": "rows::test_quantized_rows_equal_the_reference",
    "quantize/target": "attention::test_every_target",
    "unstructured/bytes": "unstructured::test_values_that_end_within_a_word",
    "unstructured/unstructured": "unstructured::test_values_that_end_within_a_word",
}


def test_the_sanitizer_sees_every_file_of_kernels(checkout_root: Path) -> None:
    kernels = checkout_root / "kernels"
    files = {
        str(path.relative_to(kernels)).removesuffix("_triton.py")
        for path in kernels.glob("*/*_triton.py")
    }
    assert files == SANITIZED.keys()
    for place in SANITIZED.values():
        file, _, test = place.partition("::")
        text = (checkout_root / f"tests/kernels/test_{file}_triton.py").read_text()
        # What stands between the test before and this one: its decorators, and helpers.
        above, found, _ = text.partition(f"\ndef {test}(")
        assert found, place
        assert "pytest.mark.sanitize" in above.rpartition("\n\n\n")[2], place
