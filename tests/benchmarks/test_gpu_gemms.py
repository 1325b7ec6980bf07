"""The benchmark of products on a GPU, as far as it runs without one."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("triton")

from sparse_runtime.benchmarks.encoder_shapes import shape_names
from sparse_runtime.benchmarks.gpu import clocks, gemms
from sparse_runtime.benchmarks.gpu.clocks import Clocks
from sparse_runtime.benchmarks.gpu.view import gemms as gemm_table
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.testing import Timing

CPU = torch.device("cpu")
SHAPE = (32, 64)


def once(
    calls: Mapping[str, Sequence[Callable[[], object]]], rounds: int = 1
) -> dict[str, Timing | str]:
    """Each contender's first call, as if it had taken so many microseconds as its place."""
    found: dict[str, Timing | str] = {}
    for place, (name, own) in enumerate(calls.items(), 1):
        own[0]()
        found[name] = Timing((place * 1e-6,))
    return found


@pytest.mark.parametrize(
    "case", ["dense int8", "unstructured@0.9 int8 ordered", "2:4 bf16", "block:16x64@0.5 fp16"]
)
def test_a_case_is_checked_and_timed_cold_and_warm(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemms, "time_kernels", once)
    layers = gemms.make_layers(SHAPE, case, CPU)
    with torch.no_grad():
        found = gemms.run_case(layers, 32, 2)
    timed = {name for name, result in found.items() if "cold_us" in result and "warm_us" in result}
    product = "torch._int_mm product" if "int8" in case else "cublaslt product"
    assert {"triton.dense", product} <= timed
    assert ("triton.unstructured" in timed) == ("dense" not in case)
    assert ("triton.block" in timed) == ("block" in case)
    assert found["triton.dense"]["config"].startswith("Config(")
    if "2:4" in case:  # a library that is not there says so, and costs the others nothing
        assert "error" in found["cusparselt searched product"]


def test_a_wrong_result_is_an_error_and_not_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemms, "time_kernels", once)
    monkeypatch.setattr(gemms.Trial, "wrong", lambda self: "the result is not PyTorch's")
    layers = gemms.make_layers(SHAPE, "dense int8", CPU)
    with torch.no_grad():
        found = gemms.run_case(layers, 32, 2)
    assert found["triton.dense"] == {"error": "RuntimeError: the result is not PyTorch's"}


def test_the_searched_algorithm_is_found_once_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, used = [], []
    monkeypatch.setattr(torch, "_cslt_compress", lambda matrix: matrix)
    monkeypatch.setattr(
        torch, "_cslt_sparse_mm_search", lambda *how, **more: searches.append(how) or 5
    )
    monkeypatch.setattr(torch, "_cslt_sparse_mm", lambda *how, **more: used.append(more))
    x, matrix = torch.zeros(16, 64, dtype=torch.int8), torch.zeros(*SHAPE, dtype=torch.int8)
    for _ in range(2):
        gemms.cusparselt(x, matrix)()
    assert len(searches) == 1
    assert used == 2 * [{"alg_id": 5, "out_dtype": torch.int32, "transpose_result": True}]


def test_the_list_is_whole() -> None:
    assert set(gemms.SHAPES) <= set(shape_names())
    assert min(gemms.TOKENS) == 128 and max(gemms.TOKENS) == 65536
    listed = list(gemms.work(gemms.SHAPES, gemms.TOKENS, gemms.CASES))
    assert len(set(listed)) == len(listed) == 3 * 4 * len(gemms.TOKENS) * len(gemms.CASES)
    assert [entry[3] for entry in listed[:: 3 * 4 * len(gemms.CASES)]] == list(gemms.TOKENS)
    for case in gemms.CASES:
        layers = gemms.make_layers(SHAPE, case, CPU)
        names = [name for name, _ in gemms.contenders(layers)]
        assert names[0] == "triton.dense"
        kind = layers.structure.kind
        assert kind == "dense" or f"triton.{kind}" in names
        # What fails while a graph is captured may take those behind it along.
        libraries = [name for name in names if name.startswith("cusparselt")]
        assert not libraries or names[-len(libraries) :] == libraries


def test_the_check_runs_every_case(checkout_root: Path) -> None:
    script = (checkout_root / "benchmarks/gpu_check.sh").read_text()
    calls = re.findall(r"products \d+ ((?:.+\\\n)*.+)", script)
    found = [case for call in calls for case in re.findall(r'"(.+?)"', call)]
    assert sorted(found) == sorted(gemms.CASES)


def test_tables_compare_with_dense_and_with_libraries() -> None:
    def times(cold: float) -> dict[str, Any]:
        return {"cold_us": cold, "warm_us": cold / 2}

    line = {
        "shape": "bert-base", "layer": "qkv", "case": "2:4 int8", "tokens": 128,
        "clocks": {"sm_mhz": 1755},
        "contenders": {
            "mma.dense": times(13.0), "mma.2:4": times(10.0), "cublas": times(30.0),
            "cusparselt searched product": times(11.0), "triton.nm": {"error": "no"},
        },
    }  # fmt: skip
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(gemm_table([line, {**line, "tokens": 1024, "contenders": {}, "clocks": None}]))
    shown = console.export_text()
    for text in ("mma.2:4", "10.0 (5.0)", "1.30", "1.10", "cusparselt searched", "1755"):
        assert text in shown, text
    kinds = {family.name.partition(".")[0] for family in FAMILIES}
    assert kinds <= {"triton", "mma", "hopper", "cublas", "cusparselt"}


def test_clocks_are_read_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '[N/A], 1'\necho '1980, 2619'\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()
    with Clocks() as found:
        while (read := found.since(start)) is None and time.monotonic() < start + 10:
            time.sleep(0.01)
    assert read == {"sm_mhz": 1980, "least_sm_mhz": 1980, "memory_mhz": 2619}
    assert found.since(time.monotonic()) is None
    assert time.monotonic() < start + 20  # its process was ended
    monkeypatch.setattr(clocks, "COMMAND", ("no such program",))
    with Clocks() as none:
        assert none.since(start) is None
