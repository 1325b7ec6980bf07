"""Tuning with a made-up timer: what is searched, kept and left out, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import sparse_runtime as sr
from sparse_runtime.kernels.linear.tiles import Workspace
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda import tuning
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.layer_choice import choices_of
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.machine import H100
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.timings import OWN, cache_file, forget, load
from sparse_runtime.ops.cuda.trial import Trial
from sparse_runtime.ops.cuda.tuning import tune_requests
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_packed
from sparse_runtime.tools import tuning as sr_tuning

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="made-up times are for the interpreter on the CPU"
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # One configuration beside the default: enough to see which is kept.
    for family in FAMILIES:
        few = type(family).configs
        monkeypatch.setattr(
            type(family), "configs", lambda self, *given, few=few: few(self, *given)[:2]
        )
    forget()


def request_of(structure: str = "dense", **options: Any) -> LinearRequest:
    packed = make_packed((16, 32), structure, values="int8", **options)
    return LinearRequest((LinearWeight("layer", packed),), CPU, torch.float32)


def times(by_family: dict[str, float]) -> Callable[[Trial], tuple[float, float]]:
    return lambda trial: (by_family.get(trial.family.name, 50.0), 1.0)


def test_the_fastest_is_kept_and_runs_the_next_layer() -> None:
    request = request_of()
    report = tune_requests([request], timer=times({"cublas": 2.0}), regimes=[16, 64])
    assert (report.products, report.failures, report.skipped) == (1, [], [])
    found = {(timing.tokens, timing.family): timing.cold for timing in report.timings}
    # cuBLASLt takes integers from 17 rows on, so it is no choice for up to 16.
    assert found == {
        (16, "triton.dense"): 50.0,
        (64, "triton.dense"): 50.0,
        (64, "cublas"): 2.0,
    }
    assert load(cache_file(H100), H100, exact=True) == report.timings
    forget()  # as a process that starts now
    choices = CudaLinear(request).choices
    by_tokens = {choice.regime.tokens: choice for choice in choices}
    assert by_tokens[64].estimate.family.name == "cublas"
    assert by_tokens[64].regime.source == OWN
    assert choices[-1].regime.source is None  # larger numbers were not measured


def test_the_fastest_configuration_of_a_family_is_kept() -> None:
    request = request_of()
    seen = []

    def timer(trial: Trial) -> tuple[float, float]:
        seen.append((trial.family.name, trial.config))
        return float(len(seen) % 2 + 1), 1.0  # 2, 1, 2, ...: the second is the faster one

    report = tune_requests([request], timer=timer, regimes=[16])
    assert [name for name, _ in seen] == ["triton.dense"] * 2
    assert seen[0] != seen[1]
    (timing,) = report.timings
    assert timing.config == tuple(seen[1][1])


def test_layers_of_one_kind_are_measured_once() -> None:
    # Two layers of one shape, and a third that has weight zeros elsewhere: two kinds.
    requests = [request_of(seed=1), request_of(seed=2), request_of("2:4")]
    measured = []

    def timer(trial: Trial) -> tuple[float, float]:
        measured.append(trial.family.name)
        return 1.0, 1.0

    report = tune_requests(requests, timer=timer, regimes=[16])
    assert report.products == 2
    assert {timing.problem.structure for timing in report.timings} == {"dense", "2:4"}


def test_time_that_runs_out_leaves_whole_comparisons_only() -> None:
    now = iter(range(100))  # a second passes at each look
    report = tune_requests(
        [request_of()],
        timer=times({}),
        seconds=3.5,
        regimes=[16, 64, 128],
        clock=lambda: float(next(now)),
    )
    # One configuration at 16, none at 64 of two families: that comparison says nothing.
    assert {timing.tokens for timing in report.timings} == {16}
    assert [tokens for _, tokens in report.skipped] == [64, 128]


def test_no_comparison_takes_the_time_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, seen = type(FAMILIES[0]), []
    default = dense.configs

    def many(self: Any, *given: Any) -> list[Any]:
        return [default(self, *given)[0]._replace(group_m=count) for count in range(1, 11)]

    def timer(trial: Trial) -> tuple[float, float]:
        seen.append((trial.tokens, trial.family.name))
        return 1.0, 1.0

    monkeypatch.setattr(dense, "configs", many)
    # A second for each: half of six at 16 tokens, then cuBLASLt's turn too.
    tune_requests(
        [request_of()], timer=timer, seconds=6, regimes=[16, 64], clock=lambda: float(len(seen))
    )
    ours = "triton.dense"
    assert seen == [(16, ours)] * 3 + [(64, ours), (64, "cublas"), (64, ours)]


def test_a_configuration_that_fails_or_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(trial: Trial) -> tuple[float, float]:
        if trial.family.name == "triton.dense" and trial.tokens == 64:
            raise RuntimeError("out of resources: shared memory")
        return 1.0, 1.0

    report = tune_requests([request_of()], timer=broken, regimes=[16, 64])
    assert {(t.tokens, t.family) for t in report.timings} == {(16, "triton.dense"), (64, "cublas")}
    assert len(report.failures) == 2
    assert "RuntimeError: out of resources" in report.failures[0].reason
    monkeypatch.setattr(tuning.Trial, "wrong", lambda self: "the result is not PyTorch's")
    report = tune_requests([request_of()], timer=times({}), regimes=[16])
    assert report.timings == [] and len(report.failures) == 2


def test_a_candidate_without_memory_for_its_operands_does_not_end_the_tuning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = type(FAMILIES[0])

    def variant(self: Any, *given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(family, "variant", variant)
    report = tune_requests([request_of()], timer=times({}), regimes=[16, 64])
    assert {(t.tokens, t.family) for t in report.timings} == {(64, "cublas")}
    assert {(f.tokens, f.family) for f in report.failures} == {(16, family.name), (64, family.name)}
    assert "OutOfMemoryError: CUDA out of memory" in report.failures[0].reason


def test_a_wrong_kernel_leaves_no_counts_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, family = stack_layers(request_of()), FAMILIES[0]
    packed = family.pack(layers)
    config = family.configs(packed, layers.problem, 16, H100)[0]
    trial = Trial(family, config, layers, packed, 16)
    assert trial.wrong() is None
    trial._workspace = Workspace(None, torch.full((3,), 7, dtype=torch.int32))
    trial.launch = lambda: None
    assert trial.wrong() == "the result is not PyTorch's"
    assert not trial._workspace.counters.any()


@pytest.mark.parametrize("values", ["int8", "fp32"])
def test_a_trial_checks_the_result(values: str) -> None:
    packed = make_packed((16, 32), values=values)
    request = LinearRequest((LinearWeight("layer", packed, torch.ones(16)),), CPU, torch.float32)
    layers = stack_layers(request)
    family = FAMILIES[0]
    config = family.configs(family.pack(layers), layers.problem, 16, H100)[0]
    assert Trial(family, config, layers, family.pack(layers), 16).wrong() is None
    other = layers._replace(matrix=layers.matrix.roll(1, 0))
    assert Trial(family, config, layers, family.pack(other), 16).wrong() is not None


@pytest.mark.parametrize("name", ["triton.dense", "cublas"])
@pytest.mark.parametrize("values", ["int8", "fp32"])
def test_a_trial_quantizes_for_a_reader_that_does_so_by_ranges(
    name: str, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = LinearWeight("layer", make_packed((16, 32), values=values), torch.ones(16))
    spec = ActivationSpec("dynamic", "uint8")
    layers = stack_layers(LinearRequest((weight,), CPU, torch.float32, results=spec))
    assert layers.problem.dynamic
    family = next(family for family in FAMILIES if family.name == name)
    packed = family.pack(layers)
    config = family.configs(packed, layers.problem, 32, H100)[0]
    trial = Trial(family, config, layers, packed, 32)
    assert trial.wrong() is None
    trial.launch()  # again, from what the first one left
    assert trial.wrong() is None
    # Floats that are right do not suffice.
    launch = trial.launch

    def without_rows() -> None:
        launch()
        assert trial._target.q is not None
        trial._target.q.add_(5)

    trial.launch = without_rows
    assert trial.wrong() == "the result is not PyTorch's"


def test_times_with_and_without_quantized_rows_are_kept_apart() -> None:
    plain = request_of()
    dynamic = replace(plain, results=ActivationSpec("dynamic", "uint8"))
    static = replace(plain, results=ActivationSpec("static", "uint8", 0.1, 128))
    report = tune_requests([plain, dynamic, static], timer=times({}), regimes=[64])
    assert report.products == 2  # a static scheme is part of the one launch everywhere
    assert load(cache_file(H100), H100, exact=True) == report.timings
    assert {timing.problem.dynamic for timing in report.timings} == {False, True}
    data = sr_tuning.TuneReport("cuda", report).to_dict()
    products = {entry["product"] for entry in data["timings"]}
    assert products == {"int8 16 × 32 dense", "int8 16 × 32 dense, rows quantized"}


def test_copies_of_a_weight_lie_in_places_of_their_own() -> None:
    layers = stack_layers(request_of())
    family = FAMILIES[0]
    packed = family.pack(layers)
    config = family.configs(family.pack(layers), layers.problem, 16, H100)[0]
    trial = Trial(family, config, layers, packed, 16)
    launches = trial.copies(2)
    packed.tiles.zero_()  # the copies do not see it
    for launch in launches:
        trial._y.fill_(torch.nan)
        launch()
        assert trial._y.abs().max() > 0


def test_new_times_take_the_place_of_old_ones() -> None:
    tune_requests([request_of()], timer=times({"cublas": 2.0}), regimes=[64, 128])
    tune_requests([request_of()], timer=times({"cublas": 60.0}), regimes=[64])
    problem = stack_layers(request_of()).problem
    by_tokens = {choice.regime.tokens: choice for choice in choices_of(problem, CPU)}
    assert by_tokens[64].estimate.family.name == "triton.dense"
    assert by_tokens[128].estimate.family.name == "cublas"


def test_a_cache_that_cannot_be_written_keeps_the_times_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_only(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(tuning, "save", read_only)
    report = tune_requests([request_of()], timer=times({"cublas": 2.0}), regimes=[64])
    assert report.path is None
    found = [c.estimate.family.name for c in CudaLinear(request_of()).choices if c.regime.source]
    assert found == ["cublas"]


def test_what_cannot_be_tuned_says_so() -> None:
    with pytest.raises(ValueError, match="expected some on one device, got none"):
        tune_requests([])
    with pytest.raises(RuntimeError, match="on a CUDA device, the layers are on cpu"):
        tune_requests([request_of()])
    with pytest.raises(ValueError, match="packed linear layers on a CUDA device, found none"):
        sr.tune(torch.nn.Linear(4, 4))
    layer = sr.Linear(make_packed((16, 32), values="int8"))
    with pytest.raises(ValueError, match=r"tokens \[17\]: expected some of 16, 32"):
        sr.tune(layer, tokens=[16, 17])


def test_the_report_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_default_timer", lambda device: times({"cublas": 2.0}))
    model = torch.nn.Sequential(sr.Linear(make_packed((16, 32), values="int8")))
    report = sr.tune(model, tokens=[64])
    data = report.to_dict()
    assert data["device"] == "cpu"
    assert {entry["family"] for entry in data["timings"]} == {"triton.dense", "cublas"}
    assert data["timings"][0]["product"] == "int8 16 × 32 dense"

    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(report)
    text = captured.get()
    assert "cublas" in text and "2.0" in text
    assert "models loaded from now on use them" in text


@pytest.mark.parametrize(
    ("model", "options", "error", "says"),
    [
        ("packed", {}, TypeError, "from_pretrained"),
        (torch.nn.Linear(4, 4), {"seconds": float("nan")}, ValueError, "seconds nan"),
        (torch.nn.Linear(4, 4), {"seconds": -1}, ValueError, "seconds -1"),
        (torch.nn.Linear(4, 4), {"tokens": []}, ValueError, "tokens"),
    ],
)
def test_wrong_arguments_are_named(
    model: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        sr.tune(model, **options)
