"""The kernel benchmark end to end on small cases, its records, and that wrong outputs stop it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sparse_runtime.benchmarks import bench_kernels, contenders
from sparse_runtime.benchmarks.bench_kernels import KernelRecord, run_kernels
from sparse_runtime.benchmarks.contenders import WrongOutputError
from sparse_runtime.benchmarks.records import Environment, environment
from sparse_runtime.benchmarks.roofline import Roofline, measure_roofline
from sparse_runtime.ops import Candidate, LinearRequest, PreparedLinear
from sparse_runtime.ops.reference import ReferenceCandidate, ReferenceLinear
from sparse_runtime.testing import make_activations, make_packed

# 1000 operations and 1 byte per nanosecond, whatever the precision.
ROOFLINE = Roofline({2**20: 1.0}, {"fp32": 1000.0, "bf16": 1000.0, "int8": 1000.0})
# One thread: the threads of many test workers would wait for each other.
QUICK: dict[str, Any] = {
    "threads": [1],
    "layers": ["attention_out"],
    "min_seconds": 0.0,
    "min_rounds": 1,
    "roofline": ROOFLINE,
    "progress": False,
}


class WrongLinear(ReferenceLinear):
    """The reference with one wrong element."""

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        y = super().forward(x, activation, residual)
        y[-1, 5] += 0.01
        return y


class NewCandidate(ReferenceCandidate):
    """A kernel family that joins: nothing but a registry entry."""

    name = "cpu.new"
    backend = "cpu"


class WrongCandidate(NewCandidate):
    name = "cpu.wrong"

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return WrongLinear(request)


class UnavailableCandidate(NewCandidate):
    name = "cpu.unavailable"

    def unavailable(self) -> str | None:
        return "needs another machine"


def join(monkeypatch: pytest.MonkeyPatch, candidate: Candidate) -> None:
    monkeypatch.setattr(contenders, "CANDIDATES", (*contenders.CANDIDATES, candidate))


@pytest.fixture(scope="module")
def records() -> list[KernelRecord]:
    return run_kernels(
        ["minilm"],
        tokens=[1, 5],
        structures=["dense", "2:4", "unstructured"],
        sparsities=[0.5, 0.9],
        values=["int8", "fp32"],
        **QUICK,
    )


def test_every_combination_is_there_and_only_free_structures_have_sparsities(
    records: list[KernelRecord],
) -> None:
    cases = {(r.structure, r.sparsity, r.values, r.tokens) for r in records}
    weights = [("dense", 0.0), ("2:4", 0.5), ("unstructured", 0.5), ("unstructured", 0.9)]
    assert cases == {(*w, v, t) for w in weights for v in ("int8", "fp32") for t in (1, 5)}


def test_candidates_and_dense_baselines_take_part(records: list[KernelRecord]) -> None:
    def names(structure: str, values: str) -> set[str]:
        return {r.contender for r in records if (r.structure, r.values) == (structure, values)}

    integer = {"cpu.panels", "Linear", "torch fp32", "torch bf16", "torch dynamic int8"}
    integer |= {"torch._int_mm"} if hasattr(torch, "_int_mm") else set()
    if find_spec("torchao") is not None:
        integer |= {"torchao int8", "torchao int8 compiled"}
    assert names("dense", "int8") == integer
    assert names("2:4", "int8") == integer | {"dense cpu.panels"}
    assert names("dense", "fp32") == {"cpu.panels", "cpu.float", "Linear", "torch fp32"}
    floats = {"cpu.panels", "cpu.float", "Linear", "torch fp32"}
    dense = {"dense cpu.panels", "dense cpu.float"}
    assert names("unstructured", "fp32") == floats | dense


def test_the_figures_of_a_record_fit_together(records: list[KernelRecord]) -> None:
    for record in records:
        assert 0 < record.p20_us <= record.p50_us <= record.p80_us
        dense = record.out_features * record.in_features
        assert (record.out_features, record.in_features) == (384, 384)
        operations = 2 * dense * record.tokens
        assert record.dense_gflops == pytest.approx(operations / record.p50_us / 1e3)
        assert record.gb_per_s == pytest.approx(record.moved_bytes / record.p50_us / 1e3)
        # At 1 byte a nanosecond all these cases are bound by memory.
        assert record.bound == "memory"
        assert record.roofline_us == pytest.approx(record.moved_bytes / 1e3)
        assert record.roofline_percent == pytest.approx(100 * record.roofline_us / record.p50_us)


def test_moved_bytes_are_those_of_the_packed_form(records: list[KernelRecord]) -> None:
    def moved(structure: str, contender: str) -> int:
        return next(
            r.moved_bytes
            for r in records
            if (r.structure, r.sparsity, r.values, r.tokens, r.contender)
            == (structure, 0.9 if structure == "unstructured" else 0.5, "int8", 1, contender)
        )

    size, both_ends, scales = 384 * 384, 4 * (384 + 384), 4 * 384
    # 2:4: half the values, and two bits of position for each.
    assert moved("2:4", "cpu.panels") == size // 2 + size // 8 + scales + both_ends
    # Bitmask: a tenth of the values, one bit of mask a weight.
    kept = size - round(0.9 * size)
    assert moved("unstructured", "cpu.panels") == kept + size // 8 + scales + both_ends
    assert moved("unstructured", "dense cpu.panels") == size + both_ends
    assert moved("unstructured", "torch bf16") == 2 * size + both_ends


def test_the_speedup_is_against_the_fastest_dense_baseline_of_the_case(
    records: list[KernelRecord],
) -> None:
    for record in records:
        case = [
            r
            for r in records
            if (r.structure, r.sparsity, r.values, r.tokens)
            == (record.structure, record.sparsity, record.values, record.tokens)
        ]
        fastest = min((r for r in case if r.baseline), key=lambda r: r.p50_us)
        assert record.dense_baseline == fastest.contender
        assert record.speedup == pytest.approx(fastest.p50_us / record.p50_us)
        assert sum(r.chosen for r in case) == 1
        assert not any(r.chosen and r.baseline for r in case)


def test_quantized_modules_compute_the_layer() -> None:
    # Asymmetric dynamic INT8: the only kind of layer they take part in.
    packed = make_packed((24, 40), "dense", values="int8")
    x, bias = make_activations(3, 40), make_activations(1, 24, seed=1)[0]
    expected = torch.nn.functional.linear(x, packed.dequantize(), bias)
    group = [c for c in contenders.contenders(packed, bias, x) if "int8" in c.name]
    assert "torch dynamic int8" in {c.name for c in group}
    for contender in group:
        error = (contender.run() - expected).norm() / expected.norm()
        assert error < 0.05, contender.name


def test_outputs_were_compared(records: list[KernelRecord]) -> None:
    for record in records:
        if not record.contender.startswith("torch"):
            assert record.max_error is not None
            assert 0 <= record.max_error < 1e-4


def test_a_wrong_output_stops_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    join(monkeypatch, WrongCandidate())
    with pytest.raises(
        WrongOutputError, match=r"cpu\.wrong on minilm attention_out .*2:4.*worst at \[2, 5\]"
    ):
        run_kernels(["minilm"], tokens=[3], structures=["2:4"], **QUICK)


def test_a_new_candidate_takes_part_by_its_registration_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join(monkeypatch, NewCandidate())
    join(monkeypatch, UnavailableCandidate())
    found = run_kernels(["minilm"], tokens=[2], structures=["block:4x1"], **QUICK)
    names = {record.contender for record in found}
    assert {"cpu.new", "dense cpu.new"} <= names
    assert "cpu.unavailable" not in names


def test_the_reference_takes_part_when_asked() -> None:
    found = run_kernels(["minilm"], tokens=[2], structures=["2:4"], reference=True, **QUICK)
    assert "reference" in {record.contender for record in found}


def test_threads_are_set_for_the_run_and_put_back() -> None:
    before = torch.get_num_threads()
    found = run_kernels(
        ["minilm"], tokens=[1], structures=["dense"], **{**QUICK, "threads": [1, 2]}
    )
    assert [r.threads for r in found] == sorted(r.threads for r in found)
    assert {r.threads for r in found} == {1, 2}
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads 0: expected at least 1"):
        run_kernels(["minilm"], **{**QUICK, "threads": [0]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ["large"]}, "shape 'large': expected one of"),
        ({"shapes": ["minilm"], "layers": ["pooler"]}, "layer 'pooler': minilm has qkv"),
        ({"shapes": ["minilm"], "tokens": [0]}, r"tokens \[0\]: expected numbers from 1"),
        ({"shapes": ["minilm"], "structures": ["4x1"]}, "structure '4x1'"),
    ],
)
def test_unknown_names_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_kernels(**{**QUICK, **arguments})


def test_records_survive_json_lines(records: list[KernelRecord], tmp_path: Path) -> None:
    path = tmp_path / "new" / "machine.jsonl"
    bench_kernels.write_jsonl(records[:2], path)
    bench_kernels.write_jsonl(records[2:3], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [json.loads(json.dumps(record.to_dict())) for record in records[:3]]
    expected = {field.name for field in dataclasses.fields(KernelRecord)} | {"schema", "kind"}
    assert set(lines[0]) == expected
    assert (lines[0]["schema"], lines[0]["kind"]) == (1, "kernel")
    assert set(lines[0]["environment"]) == {f.name for f in dataclasses.fields(Environment)}


def test_a_record_that_json_cannot_hold_is_refused_and_nothing_is_written(
    records: list[KernelRecord], tmp_path: Path
) -> None:
    broken = dataclasses.replace(records[0], speedup=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        bench_kernels.write_jsonl([records[0], broken], tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_the_environment_says_where_the_figures_come_from() -> None:
    found = environment()
    assert found.device
    assert found.cores >= 1
    assert found.versions["torch"] == torch.__version__
    assert {"sparse_runtime", "python", "transformers", "numpy"} <= set(found.versions)
    assert found.time.endswith("+00:00")


def test_table_and_plot(records: list[KernelRecord], tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    bench_kernels.render(records, console)
    text = console.export_text()
    assert "minilm attention_out [384, 384]" in text
    assert "unstructured@0.9 int8" in text
    assert text.count("cpu.panels") >= 4
    bench_kernels.plot(records, tmp_path / "plots" / "kernels.png")
    assert (tmp_path / "plots" / "kernels.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing was measured"):
        bench_kernels.render([], console)


def test_the_roofline_bounds_by_what_takes_longer() -> None:
    roofline = Roofline({2**10: 100.0, 2**20: 10.0}, {"fp32": 50.0, "int8": 200.0})
    assert roofline.floor_us(1e6, 0, "fp32") == (20.0, "compute")
    assert roofline.floor_us(1e6, 0, "int8") == (5.0, "compute")
    # The copy of the nearest size counts: the small one is ten times as fast.
    assert roofline.floor_us(0, 2**10, "fp32") == (pytest.approx(2**10 / 100e3), "memory")
    assert roofline.floor_us(0, 2**24, "fp32") == (pytest.approx(2**24 / 10e3), "memory")


def test_the_roofline_is_measured() -> None:
    roofline = measure_roofline(copy_bytes=(2**12, 2**16), gemm_sizes=(16, 32), min_seconds=0.001)
    assert set(roofline.copy_gb_s) == {2**12, 2**16}
    assert set(roofline.peak_gops) == {"fp32", "bf16", "int8"}
    assert all(v > 0 for v in (*roofline.copy_gb_s.values(), *roofline.peak_gops.values()))
    assert json.loads(json.dumps(roofline.to_dict()))["copy_gb_s"].keys() == {"4096", "65536"}


def test_the_script_runs_by_itself(checkout_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/bench_kernels.py", "--help"]
    done = subprocess.run(
        command,
        cwd=checkout_root,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(checkout_root), "PATH": "/usr/bin:/bin", "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    for option in ("--shape", "--structure", "--sparsity", "--threads", "--plot", "--json"):
        assert option in done.stdout
