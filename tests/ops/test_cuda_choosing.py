"""Which family runs a layer: by made-up times, and by predictions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.linear import linear_hopper
from sparse_runtime.kernels.linear.configs import MOST_CHOICES
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda import layer_choice, timings
from sparse_runtime.ops.cuda.choosing import (
    ANY_TOKENS,
    MOST_LAYOUTS,
    REGIMES,
    WORTH_A_LAYOUT,
    Choice,
    Estimate,
    Regime,
    choose,
    compare,
)
from sparse_runtime.ops.cuda.families import DENSE_FAMILIES, FAMILIES
from sparse_runtime.ops.cuda.family import Family
from sparse_runtime.ops.cuda.hopper_families import HOPPER_FAMILIES
from sparse_runtime.ops.cuda.layer_choice import describe
from sparse_runtime.ops.cuda.machine import H100, H100_CLOCKS, Clocks, clocks_of, from_properties
from sparse_runtime.ops.cuda.mma_families import MmaDense
from sparse_runtime.ops.cuda.predict import LAUNCH_SECONDS, Work, predict
from sparse_runtime.ops.cuda.problem import Problem, problem_of
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.timings import Timing, Timings
from sparse_runtime.spec import Structure
from sparse_runtime.testing import make_packed

BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}
DENSE_NAMES = {"triton.dense", "cublas", "mma.dense", "hopper.dense"}
SPARSE = Problem("int8", 768, 3072, "2:4", 0.5)
DENSE = Problem("int8", 768, 3072, "dense", 1.0)


@pytest.fixture
def all_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the CUDA library has kernels for every GPU."""
    monkeypatch.setattr(cuda_loading, "not_launched", lambda: None)
    monkeypatch.setattr(linear_hopper, "missing", lambda: None)


def timing(problem: Problem, tokens: int, family: str, cold: float) -> Timing:
    kind = BY_NAME[family].config_type
    config = () if kind is None else (64,) * len(kind._fields)
    return Timing(problem, tokens, family, config, cold, cold / 2)


def table(times: dict[str, dict[int, float]], problem: Problem = SPARSE) -> Timings:
    """Microseconds by family, then by tokens."""
    return Timings(
        timing(problem, tokens, family, cold)
        for family, by_tokens in times.items()
        for tokens, cold in by_tokens.items()
    )


def chosen(times: dict[str, dict[int, float]]) -> list[tuple[int, str]]:
    regimes = sorted({tokens for by_tokens in times.values() for tokens in by_tokens})
    choices = choose(compare(SPARSE, H100, [table(times)], regimes))
    # Neighbours may differ in their configurations alone.
    runs = {choice.estimate.family.name: choice.most_tokens for choice in choices}
    return [(most_tokens, family) for family, most_tokens in runs.items()]


def test_the_fastest_of_one_layout_runs_each_number_of_tokens() -> None:
    times = {
        "triton.dense": {16: 3.0, 512: 9.0, 4096: 40.0},
        "cublas": {512: 10.0, 4096: 30.0},
    }
    assert chosen(times) == [(512, "triton.dense"), (ANY_TOKENS, "cublas")]


def test_a_library_that_takes_no_few_tokens_is_not_asked_for_them() -> None:
    # torch._int_mm takes 17 rows and more, so it cannot stand for those from 1 to 16.
    times = {"triton.dense": {16: 3.0, 512: 9.0}, "cublas": {16: 1.0, 512: 1.0}}
    assert chosen(times) == [(16, "triton.dense"), (ANY_TOKENS, "cublas")]


def test_a_layout_that_is_slower_than_dense_anywhere_does_not_run_alone() -> None:
    dense = {"triton.dense": {16: 3.0, 512: 9.0}}
    # 10 % faster at one end, slower at the other: not worth its bytes beside the dense weight.
    assert chosen({**dense, "cusparselt": {16: 3.1, 512: 8.2}}) == [(ANY_TOKENS, "triton.dense")]
    # Much faster at one end: beside the dense weight.
    faster = 9.0 / WORTH_A_LAYOUT - 0.01
    assert chosen({**dense, "cusparselt": {16: 3.1, 512: faster}}) == [
        (16, "triton.dense"),
        (ANY_TOKENS, "cusparselt"),
    ]
    # Nowhere slower: alone.
    assert chosen({**dense, "cusparselt": {16: 3.0, 512: 8.9}}) == [(ANY_TOKENS, "cusparselt")]


def assert_never_slower_than_dense(choices: Sequence[Choice], regimes: Sequence[Regime]) -> None:
    """At every number of tokens that has times, by these times."""
    assert len({choice.estimate.family.layout for choice in choices}) <= MOST_LAYOUTS
    for regime in regimes:
        choice = next(c for c in choices if regime.tokens <= c.most_tokens)
        taken = regime.estimates[choice.estimate.family.name]
        dense = [e for e in regime.estimates.values() if e.family.name in DENSE_NAMES]
        assert taken.microseconds <= min(e.microseconds for e in dense), regime.tokens


@pytest.mark.parametrize("family", ["triton.block", "triton.dense"])
def test_dense_families_of_other_layouts_are_not_slower_than_what_runs(
    family: str, all_families: None
) -> None:
    # All of one layout would lose less than a layout's worth: nothing that is slower runs anyway.
    problem = Problem("int8", 768, 3072, "block:64x64", 0.1)
    times = {"triton.dense": {16: 50.0, 512: 50.0}, "hopper.dense": {16: 30.0, 512: 30.0}}
    times[family] = {16: 36.0, 512: 36.0}
    regimes = compare(problem, H100, [table(times, problem)], [16, 512])
    choices = choose(regimes)
    assert [choice.estimate.family.name for choice in choices] == ["hopper.dense"] * 2


def test_dense_families_that_are_each_the_fastest_somewhere_are_all_kept(
    all_families: None,
) -> None:
    times = {"triton.dense": {16: 29.0, 512: 36.0}, "hopper.dense": {16: 30.0, 512: 30.0}}
    times["mma.dense"] = {16: 29.5, 64: 2.0, 512: 99.0}
    regimes = compare(SPARSE, H100, [table(times)], [16, 64, 512])
    names = [choice.estimate.family.name for choice in choose(regimes)]
    assert names == ["triton.dense", "mma.dense", "hopper.dense"]


def test_every_dense_family_makes_a_table_count(all_families: None) -> None:
    (regime,) = compare(DENSE, H100, [table({"mma.dense": {512: 5.0}}, DENSE)], [512])
    assert set(regime.estimates) == {"mma.dense"}
    assert [c.estimate.family.name for c in choose([regime])] == ["mma.dense"]


def test_the_dense_families_are_known_and_their_layouts_fit() -> None:
    assert DENSE_NAMES == DENSE_FAMILIES
    layouts = {BY_NAME[name].layout for name in DENSE_NAMES}
    assert len(layouts) <= MOST_LAYOUTS  # together they are nowhere slower than any of them


TIMES = st.sampled_from([1.0, 1.5, 2.0, 3.0, 10.0, 10.1])
ESTIMATES = st.tuples(
    st.dictionaries(st.sampled_from(sorted(BY_NAME)), TIMES),
    st.dictionaries(st.sampled_from(sorted(DENSE_NAMES)), TIMES, min_size=1),
).map(lambda pair: {**pair[0], **pair[1]})
"""Of some families, a dense one among them."""


@given(st.lists(ESTIMATES, min_size=1, max_size=4))
def test_nothing_that_is_chosen_is_slower_than_a_dense_family(
    times: list[dict[str, float]],
) -> None:
    regimes = []
    for tokens, known in zip(REGIMES, times, strict=False):
        estimates = {name: Estimate(BY_NAME[name], None, time) for name, time in known.items()}
        regimes.append(Regime(tokens, tokens, estimates, "made up"))
    choices = choose(regimes)
    assert_never_slower_than_dense(choices, regimes)
    assert [c.most_tokens for c in choices] == [*REGIMES[: len(times) - 1], ANY_TOKENS]


def test_one_more_layout_than_needed_must_be_worth_its_bytes(all_families: None) -> None:
    # Two dense layouts are needed; a third one pays at 16 tokens, or does not.
    problem = Problem("int8", 768, 3072, "block:64x64", 0.1)
    needed = {"mma.dense": {16: 10.0, 64: 5.0, 512: 40.0}, "cublas": {64: 9.0, 512: 20.0}}
    for block, first in ((7.9, "triton.block"), (8.1, "mma.dense")):
        times = {**needed, "triton.block": {16: block, 64: 6.0, 512: 90.0}}
        regimes = compare(problem, H100, [table(times, problem)], [16, 64, 512])
        names = [choice.estimate.family.name for choice in choose(regimes)]
        assert names == [first, "mma.dense", "cublas"]


def test_a_family_without_a_time_is_not_compared_with_measured_ones() -> None:
    times = table({"triton.dense": {512: 9.0}})
    (regime,) = compare(SPARSE, H100, [times], [512])
    assert set(regime.estimates) == {"triton.dense"}
    assert regime.source == timings.OWN


def test_times_without_a_dense_one_count_for_nothing() -> None:
    # Never slower than dense cannot be told then.
    (regime,) = compare(SPARSE, H100, [table({"cusparselt": {512: 0.1}})], [512])
    assert regime.source is None
    assert "cusparselt" not in regime.estimates  # its times are not predicted
    assert "triton.dense" in regime.estimates


def test_the_first_table_that_knows_a_regime_is_taken() -> None:
    own, shipped = table({"triton.dense": {16: 3.0}}), table({"triton.dense": {16: 1.0, 64: 2.0}})
    shipped.source = "the package's table"
    first, second = compare(SPARSE, H100, [own, shipped], [16, 64])
    assert (first.source, first.estimates["triton.dense"].microseconds) == (timings.OWN, 3.0)
    assert (second.source, second.estimates["triton.dense"].microseconds) == (shipped.source, 2.0)


def test_a_configuration_of_another_version_is_not_used() -> None:
    unknown = Timing(SPARSE, 512, "triton.dense", (64, 64), 1.0, 1.0)
    (regime,) = compare(SPARSE, H100, [Timings([unknown])], [512])
    assert regime.source is None


@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("structure", ["dense", "unstructured", "2:4", "block:64x64"])
@pytest.mark.parametrize("shape", [(384, 384), (4096, 1024), (21, 43)])
def test_predictions_choose_nothing_slower_than_dense(
    dtype: str, structure: str, shape: tuple[int, int]
) -> None:
    density = {"dense": 1.0, "2:4": 0.5}.get(structure, 0.1)
    regimes = compare(Problem(dtype, *shape, structure, density), H100, ())
    choices = choose(regimes)
    assert choices[-1].most_tokens == ANY_TOKENS
    assert_never_slower_than_dense(choices, regimes)


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("structure", ["dense", "unstructured", "2:4", "block:64x64"])
@pytest.mark.parametrize("hidden", [384, 768, 1024])
def test_predictions_for_an_h100_take_one_launch_up_to_512_tokens(
    dtype: str, structure: str, hidden: int, all_families: None
) -> None:
    density = {"dense": 1.0, "2:4": 0.5}.get(structure, 0.1)
    inner = 4 * hidden
    for out_features, in_features, dynamic in (
        (3 * hidden, hidden, False),
        (hidden, hidden, False),
        (inner, hidden, dtype == "int8"),
        (hidden, inner, False),
    ):
        problem = Problem(dtype, out_features, in_features, structure, density, dynamic=dynamic)
        for choice in choose(compare(problem, H100, ())):
            if choice.regime.tokens <= 512:
                assert choice.estimate.family.launches(problem) == 1


@pytest.mark.parametrize("tokens", REGIMES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_configurations_are_few_different_and_survive_a_table(family: Family, tokens: int) -> None:
    if family.name == "cusparselt":
        pytest.skip("packs on CUDA alone, and has no configurations")
    if isinstance(family, MmaDense) or family in HOPPER_FAMILIES:
        pytest.skip("tests/cuda has them, with a library")
    structures = {"triton.block": "block:64x64", "triton.unstructured": "unstructured"}
    packed = make_packed((128, 256), structures.get(family.name, "2:4"), values="int8")
    request = LinearRequest((LinearWeight("layer", packed),), torch.device("cpu"), torch.float32)
    layers = stack_layers(request)
    assert family.rejects(layers.problem) is None
    configs = family.configs(family.pack(layers), layers.problem, tokens, H100)
    assert 1 <= len(configs) <= MOST_CHOICES
    assert len(set(configs)) == len(configs)
    for config in configs:
        assert family.decode(() if config is None else tuple(config)) == config


def test_predictions_follow_bytes_operations_and_launches() -> None:
    work = Work(weight_bytes=1e6, operations=1e6, peak_share=0.5, programs=132)
    streamed = predict(DENSE, 1, work, H100)
    assert predict(DENSE, 1, work._replace(weight_bytes=2e6), H100) > 1.1 * streamed
    more = work._replace(launches=2)
    assert predict(DENSE, 1, more, H100) == pytest.approx(streamed + 1e6 * LAUNCH_SECONDS)
    heavy = work._replace(operations=1e12)
    assert predict(DENSE, 1, heavy, H100) == pytest.approx(
        1e6 * (LAUNCH_SECONDS + 1e12 / (0.5 * 1979e12))
    )
    # One program more than there are multiprocessors takes a second wave.
    tail = predict(DENSE, 1, heavy._replace(programs=133), H100)
    assert tail == pytest.approx(2 + 2 * 132 / 133 * (predict(DENSE, 1, heavy, H100) - 2))


def test_the_kind_of_product_is_read_off_the_matrix() -> None:
    matrix = torch.zeros(64, 64, dtype=torch.int8)
    matrix[:16, :32] = 1
    assert problem_of(matrix, Structure.parse("block:16x16")).density == 0.1  # 2 of 16
    assert problem_of(matrix, Structure("unstructured")) == Problem(
        "int8",
        64,
        64,
        "unstructured",
        0.1,
        0.25,  # one slab of four has more than 2:4
    )
    assert problem_of(matrix.bfloat16(), Structure.parse("2:4")) == Problem(
        "bf16", 64, 64, "2:4", 0.5
    )
    assert problem_of(matrix, Structure("dense")).density == 1.0


def test_a_gpu_is_read_off_its_properties() -> None:
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132,
        L2_cache_size=50 << 20,
    )  # fmt: skip
    clocks = H100_CLOCKS
    machine = from_properties(properties, clocks)
    assert (machine.capability, machine.processors) == (90, 132)
    assert machine.bytes_per_second == pytest.approx(H100.bytes_per_second, rel=0.01)
    assert machine.operations["half"] == pytest.approx(H100.operations["half"], rel=0.01)
    assert machine.operations["int8"] == pytest.approx(H100.operations["int8"], rel=0.01)
    # A later one counts as the latest that is known.
    properties.major = 12
    assert from_properties(properties, clocks).operations["half"] == pytest.approx(
        2 * 989e12, rel=0.01
    )


class Driver:
    """The parts of libcuda that are asked, with these attributes by number."""

    def __init__(self, attributes: dict[int, int]) -> None:
        self.attributes = attributes

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, number: Any, device: int) -> int:
        number._obj.value = device
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, number: Any) -> int:
        assert number.value == 2
        value._obj.value = self.attributes.get(attribute, 0)
        return 0 if attribute in self.attributes else 1


def test_clocks_come_from_the_driver(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    known = {13: 1_980_000, 36: 3_201_000, 37: 6144}
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(known))
    assert clocks_of(2) == Clocks(1_980_000, 3_201_000, 6144)
    for silent in ({13: 1_980_000, 37: 6144}, {**known, 36: 0}):
        monkeypatch.setattr("ctypes.CDLL", lambda name, silent=silent: Driver(silent))
        assert clocks_of(2) == H100_CLOCKS
    assert caplog.text.count("taken for an H100's: the driver gives 0 for attribute 36") == 2


def test_the_environment_leaves_kernels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_loading, "not_launched", lambda: None)
    monkeypatch.setattr(linear_hopper, "missing", lambda: None)
    families = (MmaDense(), HOPPER_FAMILIES[0])
    problem = Problem("int8", 64, 64, "dense", 1.0)
    assert [family.rejects(problem) for family in families] == [None, None]
    reason = "SPARSE_RUNTIME_WITHOUT={} leaves it out"
    monkeypatch.setenv("SPARSE_RUNTIME_WITHOUT", "hopper")
    assert [family.rejects(problem) for family in families] == [None, reason.format("hopper")]
    monkeypatch.setenv("SPARSE_RUNTIME_WITHOUT", "mma,hopper")
    assert {family.rejects(problem) for family in families} == {reason.format("mma,hopper")}
    monkeypatch.setenv("SPARSE_RUNTIME_WITHOUT", " hopper , mma,")
    assert {family.rejects(problem) for family in families} == {reason.format(" hopper , mma,")}
    monkeypatch.setenv("SPARSE_RUNTIME_WITHOUT", " ")
    assert [family.rejects(problem) for family in families] == [None, None]
    monkeypatch.setenv("SPARSE_RUNTIME_WITHOUT", "mma,hoper")
    with pytest.raises(ValueError, match=r"WITHOUT=mma,hoper: expected .* mma, hopper.* 'hoper'"):
        families[0].rejects(problem)


@pytest.mark.parametrize("name", ["mma.dense", "mma.2:4", "mma.exact"])
def test_a_second_launch_counts_where_results_are_quantized_by_ranges(
    name: str, all_families: None
) -> None:
    family, structure = BY_NAME[name], {"mma.2:4": "2:4", "mma.exact": "unstructured"}
    problem = Problem("int8", 3072, 768, structure.get(name, "dense"), 0.5)
    dynamic = problem._replace(dynamic=True)
    assert (family.launches(problem), family.launches(dynamic)) == (1, 2)
    for tokens in (16, 512):
        once, twice = (
            predict(p, tokens, family.work(p, tokens, H100), H100) for p in (problem, dynamic)
        )
        assert twice > once + 1e6 * LAUNCH_SECONDS  # and the floats in between
    # One launch of ours reads its floats back, a library's epilogue has whole rows.
    for other in ("triton.dense", "cublas"):
        works = [BY_NAME[other].work(p, 512, H100) for p in (problem, dynamic)]
        assert works[0].launches == works[1].launches == BY_NAME[other].launches(dynamic)
        assert works[0] != works[1]


def test_explain_says_how_each_time_is_known_and_what_does_not_fit() -> None:
    times = table({"triton.dense": {16: 3.0, 512: 9.0}, "cublas": {512: 7.0}})
    text = describe(SPARSE, choose(compare(SPARSE, H100, [times], [16, 512])))
    assert "triton.dense for 1 to 16 tokens: measured (this machine's cache) 3.0 us at 16" in text
    cublas = "cublas from 17 tokens: measured (this machine's cache) 7.0 us in 2 launches at 512"
    assert cublas in text
    assert "(triton.dense 9.0)" in text
    text = describe(DENSE, choose(compare(DENSE, H100, ())))
    assert "predicted" in text and "measured" not in text
    assert "cusparselt: multiplies 2:4 weights" in text


def test_a_layer_is_chosen_by_the_times_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    own = table({name: {t: 1.0 for t in REGIMES} for name in ("triton.dense",)})
    monkeypatch.setattr(layer_choice, "own_timings", lambda machine: own)
    monkeypatch.setattr(layer_choice, "shipped_timings", lambda machine: Timings())
    for choice in layer_choice.choices_of(SPARSE, torch.device("cpu")):
        assert choice.regime.source == timings.OWN
        assert choice.estimate.microseconds == 1.0


def test_neighbouring_regimes_of_one_family_are_one_entry() -> None:
    times = table({"triton.dense": {16: 3.0, 32: 4.0, 64: 5.0}, "cublas": {64: 6.0}})
    text = describe(SPARSE, choose(compare(SPARSE, H100, [times], [16, 32, 64])))
    assert text.startswith(
        "triton.dense: measured (this machine's cache) 5.0 us at 64 tokens (cubl"
    )
