"""Unstructured layers and models on the "exact" kernels, which the emulator runs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.formats.reorder import reorder_columns
from sparse_runtime.kernels.linear.linear_cuda import MmaConfig
from sparse_runtime.kernels.linear.operands import Epilogue
from sparse_runtime.ops import LinearRequest, LinearWeight, get_backend
from sparse_runtime.ops.cuda import layer_choice
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, Choice, Estimate, Regime, compare
from sparse_runtime.ops.cuda.exact_families import MmaExact
from sparse_runtime.ops.cuda.input_orders import input_order
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.machine import H100, Machine
from sparse_runtime.ops.cuda.problem import RESTS, Problem, problem_of
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.tuning import tune_requests
from sparse_runtime.ops.reference import ReferenceLinear
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    make_packed,
)

CPU = torch.device("cpu")
EXACT = MmaExact()
# 70 outputs and 132 inputs divide no tile and no slab; 19 tokens are more than one tile of 16.
SHAPE, TOKENS = (70, 132), 19
RTX_4090 = Machine("RTX 4090", 89, 128, 72 << 20, 1e12, {"half": 165e12, "int8": 330e12})


def request_of(sparsity: float, values: str = "int8", shape=SHAPE, **how) -> LinearRequest:
    packed = make_packed(shape, "unstructured", sparsity, values=values, seed=2, **how)
    bias = make_activations(1, shape[0], seed=1)[0]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(values, torch.float32)
    return LinearRequest((LinearWeight("layer", packed, bias),), CPU, dtype)


def choices(config: MmaConfig | None = None) -> tuple[Choice, ...]:
    estimate = Estimate(EXACT, config, 1.0)
    return (Choice(ANY_TOKENS, estimate, Regime(1, 16, {EXACT.name: estimate}, None)),)


# Every activation scheme with and without zero points; no rest, some slabs, every slab.
@pytest.mark.parametrize("scheme", ["dynamic", "symmetric"])
@pytest.mark.parametrize("sparsity", [0.999, 0.95, 0.8, 0.0])
def test_quantized_layers_equal_the_reference(emulated, sparsity: float, scheme: str) -> None:
    request = request_of(sparsity, activations=scheme)
    x = make_activations(TOKENS, SHAPE[1])
    residual = make_activations(TOKENS, SHAPE[0], seed=3)
    expected = ReferenceLinear(request)(x, "relu", residual)
    for config in (MmaConfig(16, 64, 1), MmaConfig(64, 64, 2), MmaConfig(128, 128, 1)):
        assert torch.equal(CudaLinear(request, choices(config))(x, "relu", residual), expected)


# One value; inputs that end within a group of four; whole slabs and tiles; several layers as one.
@pytest.mark.parametrize("shape", [(1, 1), (17, 66), (128, 128)])
def test_hazard_shapes_equal_the_reference(emulated, shape: tuple[int, int]) -> None:
    request = request_of(0.9, shape=shape, activations="dynamic")
    twice = LinearRequest(request.weights * 2, CPU, torch.float32)
    for layers in (request, twice):
        for tokens in (1, 17):
            x = make_activations(tokens, shape[1])
            layer = CudaLinear(layers, choices(MmaConfig(16, 64, 1)))
            assert torch.equal(layer(x), ReferenceLinear(layers)(x))


@pytest.mark.parametrize("values", ["bf16", "fp16"])
def test_float_layers_are_as_near_as_their_type(emulated, values: str) -> None:
    request = request_of(0.9, values)
    layer = CudaLinear(request, choices(MmaConfig(16, 64, 2)))
    x = make_activations(TOKENS, SHAPE[1]).to(request.dtype)
    weight = request.weights[0]
    oracle, dense = linear_oracle(x, weight.packed, weight.bias.to(request.dtype))
    assert_close_to_oracle(layer(x), oracle, dense)


def test_the_rest_is_read_off_the_matrix(emulated) -> None:
    matrix = torch.zeros(40, 130, dtype=torch.int8)  # 3 tiles of outputs x 3 slabs
    assert problem_of(matrix, request_of(0.9).weights[0].packed.spec.structure).rest == 0
    matrix[39, 127:130] = 1  # of two slabs, at most two of four
    structure = request_of(0.9).weights[0].packed.spec.structure
    assert problem_of(matrix, structure).rest == 0
    matrix[0, 0:3] = 1
    assert problem_of(matrix, structure).rest == 0.1  # one of nine
    matrix[:] = 1
    assert problem_of(matrix, structure).rest == 0.75  # two inputs are left for the last slab
    layers = stack_layers(request_of(0.85))
    packed = EXACT.pack(layers)
    extra = len(packed.rest) / packed.rest_places.numel()
    assert layers.problem.rest == min(RESTS, key=lambda rest: abs(rest - extra)) > 0


def test_what_does_not_fit_is_refused_in_words(emulated) -> None:
    fits = Problem("int8", 768, 768, "unstructured", 0.1, 0.5)
    assert EXACT.rejects(fits) is None
    assert "100% of its slabs exceed 2:4" in str(EXACT.rejects(fits._replace(rest=1.0)))
    for structure in ("dense", "2:4", "4:8", "block:16x16"):
        assert (
            EXACT.rejects(fits._replace(structure=structure)) == "multiplies unstructured weights"
        )
    assert "int8, bf16 and fp16" in str(EXACT.rejects(fits._replace(dtype="fp32")))
    assert "zero points" in str(EXACT.refuses(Epilogue(weight_zero=torch.ones(4))))


def test_a_larger_rest_costs_more(emulated) -> None:
    problem = Problem("int8", 3072, 768, "unstructured", 0.1)

    def microseconds(rest: float, tokens: int) -> float:
        (regime,) = compare(problem._replace(rest=rest), H100, (), [tokens])
        return regime.estimates["mma.exact"].microseconds

    for tokens in (16, 4096):  # bytes decide, products decide
        times = [microseconds(rest, tokens) for rest in RESTS[:-1]]
        assert times == sorted(times) and times[-1] > times[0]


@pytest.mark.parametrize(("dtype", "large"), [("int8", True), ("bf16", False)])
def test_tiles_fit_the_shared_memory_there_is(emulated, dtype: str, large: bool) -> None:
    problem = Problem(dtype, 768, 768, "unstructured", 0.1)
    configs = EXACT.configs(None, problem, 4096, RTX_4090)
    assert any(config.block_m == 128 for config in configs) == large
    assert configs and EXACT.work(problem, 4096, RTX_4090).programs
    assert any(config.block_m == 128 for config in EXACT.configs(None, problem, 4096, H100))


def test_choosing_says_how_much_is_left(emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(0.9, activations="dynamic")
    problem = stack_layers(request).problem
    assert "mma.exact" in layer_choice.describe(problem, layer_choice.choices_of(problem, CPU))
    text = layer_choice.describe(problem, choices())
    assert f"mma.exact (2:4, and a rest in about {problem.rest:.0%} of its slabs)" in text


def test_tuning_measures_it_like_the_others(
    emulated, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    request = request_of(0.95, activations="dynamic", shape=(32, 64))
    ticks = iter(range(1000))
    report = tune_requests(
        [request], timer=lambda trial: (1.0, 1.0), seconds=90, regimes=[16],
        clock=lambda: float(next(ticks)) if next(ticks) < 20 else 100.0,
    )  # fmt: skip
    assert not report.failures  # each result was compared with PyTorch's
    assert any(timing.family == "mma.exact" for timing in report.timings)


def test_an_order_is_searched_where_it_helps(emulated) -> None:
    request = request_of(0.9, shape=(64, 256), activations="dynamic")
    order = input_order(request, None)
    assert order is not None and sorted(order.tolist()) == list(range(256))
    weight = request.weights[0]
    moved = LinearWeight("layer", reorder_columns(weight.packed, order), weight.bias)
    assert (
        stack_layers(LinearRequest((moved,), CPU, torch.float32)).problem.rest
        < stack_layers(request).problem.rest
    )
    within = input_order(request, 64)
    assert within is not None
    for head, part in enumerate(within.split(64)):
        assert sorted(part.tolist()) == list(range(64 * head, 64 * head + 64))


@pytest.mark.parametrize(
    "request_",
    [
        request_of(0.5, shape=(64, 256)),  # too dense for any order
        request_of(0.999, shape=(64, 256)),  # nothing beside 2:4
        request_of(0.9, "fp32", shape=(64, 256)),  # no kernel
        LinearRequest(
            (LinearWeight("layer", make_packed((64, 256), "2:4", values="int8")),), CPU,
            torch.float32,
        ),
    ],
    ids=["dense", "fits", "fp32", "2:4"],
)  # fmt: skip
def test_no_order_is_searched_elsewhere(emulated, request_: LinearRequest) -> None:
    assert input_order(request_, None) is None


def test_a_pair_on_the_backend_gives_the_same(emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_runtime.ops.cuda.linear.choices_for", lambda *_: choices())
    maker = request_of(0.9, shape=(256, 32), activations="dynamic").weights[0]
    reader = request_of(0.9, shape=(64, 256), activations="dynamic").weights[0]
    backend = get_backend("cuda", "cpu", torch.float32)
    first, second = backend.prepare_pair([maker], reader)
    assert "inputs of 1 layers" in backend.remarks()[-1]
    x = make_activations(5, 32)
    plain = [ReferenceLinear(LinearRequest((w,), CPU, torch.float32)) for w in (maker, reader)]
    expected = plain[1](plain[0](x, "relu"))
    inner = first(x, "relu")
    assert not torch.equal(inner, plain[0](x, "relu"))  # its channels stand elsewhere
    assert torch.equal(second(inner), expected)
