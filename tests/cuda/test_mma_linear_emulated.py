"""The mma kernels, thread by thread on the host, against the reference; what a GPU adds is the
hardware's word and the time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.cuda_interface import Kernel, SrLinear, describe_layer
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    float_linear,
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)

NAMES = [
    f"mma.{values}.{structure}.{tile}"
    for values in ("int8", "bf16", "f16")
    for structure in ("dense", "2to4")
    for tile in ("128x128", "64x64", "64x16")
]


def kernel_of(emulator, name: str) -> Kernel:
    return next(kernel for kernel in emulator.kernels if kernel.name == name)


def make_weight(kernel: Kernel, outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """Random values of the kernel's type; two random of every four for 2:4."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    if kernel.dtype == torch.int8:
        weight = torch.randint(-128, 128, weight.shape, generator=generator).float()
    if kernel.structure == "2:4":
        padded = -(-inputs // 4) * 4
        order = torch.rand(outputs, padded // 4, 4, generator=generator).argsort(-1)
        weight = weight * (order < 2).view(outputs, padded)[:, :inputs]
    return weight.to(kernel.dtype)


@dataclass
class Problem:
    """One layer on one kernel, with everything that a launch needs."""

    kernel: Kernel
    weight: Tensor
    packed: Tensor
    x: Quantized | Tensor
    epilogue: Epilogue
    target: Target
    layer: SrLinear
    scratch: list[Tensor]

    def run(self, emulator, seed: int = 1) -> None:
        given = self.x if isinstance(self.x, tuple) else (self.x,)
        reads = [t for t in (*given, *self.epilogue, self.packed) if isinstance(t, Tensor)]
        writes = [t for t in self.target if isinstance(t, Tensor)]
        emulator.run(self.kernel, self.layer, reads, [*writes, *self.scratch], seed)
        counters = [self.target.ranges, *self.scratch[1:]]
        assert not any(t.any() for t in counters if t is not None)  # ready for the next launch


def make_problem(
    emulator,
    name: str,
    tokens: int,
    outputs: int,
    inputs: int,
    *,
    scheme: str = "none",
    activation: str | None = None,
    split_k: int = 1,
    zero_points: bool = False,
    floats: torch.dtype = torch.float32,
    epilogue: Epilogue | None = None,
) -> Problem:
    kernel = kernel_of(emulator, name)
    weight = make_weight(kernel, outputs, inputs)
    packed = emulator.pack(weight, kernel.structure)
    rows = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens))
    unit = 16 // weight.element_size()
    stored = torch.full((tokens, -(-inputs // unit) * unit + unit), 99).to(kernel.dtype)
    epilogue = epilogue or Epilogue()
    if kernel.dtype == torch.int8:
        if zero_points:
            q, scale, zero = quantize_rows_asymmetric(rows)
            q, zero = (q - 128).to(torch.int8), zero - 128
        else:
            (q, scale), zero = quantize_rows(rows), None
        stored[:, :inputs] = q
        x: Quantized | Tensor = Quantized(stored[:, :inputs], stored.stride(0), scale, zero, 1)
        epilogue = epilogue._replace(
            weight_scale=torch.rand(outputs) * 0.01, weight_sum=weight.int().sum(1).int()
        )
    else:
        stored[:, :inputs] = rows.to(kernel.dtype)
        x = stored[:, :inputs]
    dynamic = scheme not in ("none", "static")
    needs = emulator.workspace_needs(kernel, tokens, outputs, split_k)
    target = Target(
        floats=torch.full((tokens, outputs), 7.0, dtype=floats),
        floats_stride=outputs,
        q=torch.zeros(tokens, outputs, dtype=torch.int8) if scheme != "none" else None,
        q_stride=outputs,
        scale=torch.full((tokens,), 0.05) if scheme != "none" else None,
        zero=torch.full((tokens,), 3, dtype=torch.int32) if scheme != "none" else None,
        ranges=torch.zeros(2, tokens, dtype=torch.int32) if dynamic else None,
    )
    scratch = [
        torch.empty(needs.partial_bytes, dtype=torch.uint8),
        torch.zeros(needs.tile_counters, dtype=torch.int32),
    ]
    layer = describe_layer(x, packed, outputs, epilogue, activation, target, scheme)
    layer.split_k, layer.partials, layer.tile_counters = split_k, *(t.data_ptr() for t in scratch)
    return Problem(kernel, weight, packed, x, epilogue, target, layer, scratch)


def expected(problem: Problem, activation: str | None = None) -> Tensor:
    e = problem.epilogue
    if isinstance(problem.x, Quantized):
        zero = 0 if problem.x.zero is None else problem.x.zero
        given = (problem.x.q, zero, problem.x.scale, problem.weight, e.weight_scale)
        return integer_linear(*given, e.bias, activation, e.residual)
    oracle = (problem.x.double(), problem.weight.double())
    return float_linear(*oracle, e.bias, activation, e.residual)


@pytest.mark.parametrize("structure", ["dense", "2:4"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 66), (70, 131)])  # one, a slab, off both
def test_weights_come_back_bit_for_bit(emulator, shape, dtype, structure) -> None:
    kernel = Kernel(0, "", dtype, structure, 0, 0)
    weight = make_weight(kernel, *shape)
    weight[weight == 0] = 0  # no -0.0
    weight[-1] = 0  # an empty row
    weight[-1, -1] = -0.0  # its two places are free
    packed = emulator.pack(weight, structure)
    back = emulator.unpack(packed, structure, dtype, shape)
    kind = torch.int8 if dtype == torch.int8 else torch.int16
    assert torch.equal(back.view(kind), weight.view(kind))


def test_minus_zeros_need_no_place(emulator) -> None:
    weight = torch.full((16, 64), -0.0, dtype=torch.bfloat16)  # what -w * 0 leaves
    weight[:, 1::4], weight[:, 3::4] = 1.5, -2.5
    packed = emulator.pack(weight, "2:4")
    assert torch.equal(emulator.unpack(packed, "2:4", torch.bfloat16, (16, 64)), weight)


def test_three_of_four_are_refused(emulator) -> None:
    weight = torch.zeros(16, 64, dtype=torch.int8)
    weight[3, 8:11] = 1
    with pytest.raises(ValueError, match="two nonzero"):
        emulator.pack(weight, "2:4")
    assert emulator.pack(weight, "dense").any()


# Off every tile; inputs that end within a slab, within 16 bytes, and one alone.
SHAPES = [(1, 1, 1), (9, 70, 65), (130, 130, 64), (33, 40, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in NAMES if "int8" in name])
def test_integers_equal_the_reference(emulator, name: str, shape: tuple[int, int, int]) -> None:
    problem = make_problem(emulator, name, *shape, zero_points=True)
    problem.run(emulator)
    assert torch.equal(problem.target.floats, expected(problem))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in NAMES if "int8" not in name])
def test_floats_are_as_near_as_their_type(emulator, name: str, shape) -> None:
    problem = make_problem(emulator, name, *shape)
    problem.run(emulator)
    oracle = expected(problem)
    bound = 3e-6 * shape[2] ** 0.5 * max(1.0, float(oracle.abs().max()))
    assert float((problem.target.floats - oracle).abs().max()) <= bound


@pytest.mark.parametrize("split_k", [2, 3])
@pytest.mark.parametrize("name", ["mma.int8.2to4.64x16", "mma.int8.dense.64x64"])
def test_splits_add_up_whatever_the_order(emulator, name: str, split_k: int) -> None:
    for seed in (0, 5):
        problem = make_problem(emulator, name, 20, 70, 200, split_k=split_k)  # 4 slabs
        problem.run(emulator, seed)
        assert torch.equal(problem.target.floats, expected(problem))


@pytest.mark.parametrize("floats", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["static", "symmetric", "full_range", "asymmetric"])
def test_results_are_quantized_for_the_next_layer(emulator, scheme: str, floats) -> None:
    name = "mma.int8.2to4.64x16"
    problem = make_problem(emulator, name, 19, 130, 64, scheme=scheme, floats=floats)  # 3 tiles out
    problem.run(emulator)
    target = problem.target
    assert torch.equal(target.floats, expected(problem).to(floats))
    y = target.floats.float()
    if scheme == "static":
        assert torch.equal(target.q.int(), quantize_static(y, 0.05, 3, -128, 127))
        return
    if scheme == "asymmetric":
        q, scale, zero = quantize_rows_asymmetric(y)
        q, zero = q - 128, zero - 128
        assert torch.equal(target.zero, zero)
    else:
        q, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(y)
    assert torch.equal(target.q.int(), q.int()) and torch.equal(target.scale, scale)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "tanh"])
def test_bias_activation_and_residual(emulator, activation: str) -> None:
    residual = torch.randn(21, 75)[:, :70]  # rows with a gap between them
    epilogue = Epilogue(bias=torch.randn(70), residual=residual, residual_stride=75)
    name = "mma.int8.dense.64x16"
    problem = make_problem(emulator, name, 21, 70, 96, epilogue=epilogue, activation=activation)
    problem.run(emulator)
    torch.testing.assert_close(
        problem.target.floats, expected(problem, activation), rtol=1e-6, atol=1e-6
    )


def test_outputs_are_requantized_where_they_have_quantizers(emulator) -> None:
    scale = torch.where(torch.arange(70) < 40, 0.03, 0.0)  # none from 40 on
    numbers = [torch.full((70,), n, dtype=torch.int32) for n in (2, -100, 90)]
    epilogue = Epilogue(bias=torch.randn(70))._replace(
        out_scale=scale, out_zero=numbers[0], out_low=numbers[1], out_high=numbers[2]
    )
    problem = make_problem(emulator, "mma.int8.dense.64x16", 5, 70, 64, epilogue=epilogue)
    problem.run(emulator)
    plain = expected(problem)
    q = quantize_static(plain, 0.03, 2, -100, 90)
    requantized = (q - 2).float() * torch.tensor(0.03)
    assert torch.equal(problem.target.floats[:, 40:], plain[:, 40:])
    assert torch.equal(problem.target.floats[:, :40], requantized[:, :40])


def test_a_zero_weight_gives_zeros_and_the_bias(emulator) -> None:
    problem = make_problem(
        emulator, "mma.int8.2to4.64x64", 5, 70, 64, epilogue=Epilogue(bias=torch.randn(70))
    )
    problem.packed.copy_(emulator.pack(torch.zeros(70, 64, dtype=torch.int8), "2:4"))
    problem.run(emulator)
    assert torch.equal(problem.target.floats, problem.epilogue.bias.expand(5, -1))


def test_memory_that_was_not_named_is_not_touched(emulator) -> None:
    problem = make_problem(emulator, "mma.int8.dense.64x64", 5, 70, 64)
    problem.layer.bias = torch.zeros(70).data_ptr()  # a bias that nobody named
    with pytest.raises(RuntimeError, match=r"block \(0, 0\), thread \d+: global read out of bound"):
        problem.run(emulator)
    problem = make_problem(emulator, "mma.int8.dense.64x64", 5, 70, 64)
    problem.layer.tokens = 6  # one more than there are
    with pytest.raises(RuntimeError, match="out of bounds"):
        problem.run(emulator)
