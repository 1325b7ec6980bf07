"""The C++ kernel family int8_linear: packing, exact accumulators, float epilogue, GELU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C

AVAILABLE = [s["name"] for s in _C.isas() if s["available"]]

# Tiles are 4 (generic, AVX2) or 6 (AVX-512) tokens x 64 outputs; a panel is 16 outputs, a group 4
# inputs, the generic kernel widens 256 inputs at a time.
TOKENS = (1, 2, 5, 6, 7, 17, 65)  # one token; part of a tile; a full one; one over; many
OUTPUTS = (1, 15, 16, 17, 63, 64, 65, 130)  # part of a panel; a panel; a tile; two tiles and 2
INPUTS = (1, 3, 4, 5, 63, 64, 65, 300, 3072)  # part of a group; whole; one over; two chunks; many
ZERO_POINTS = (0, 128, 255)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}


@dataclass
class Weight:
    """An int8 [n, k] matrix and its packed form."""

    dense: Tensor
    packed: Tensor = field(init=False)
    row_sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n, k = self.dense.shape
        size, sums = _C.int8_linear_layout_size(n, k)
        self.packed = torch.full((size,), 77, dtype=torch.int8)  # a value that must not survive
        self.row_sums = torch.full((sums,), 77, dtype=torch.int32)
        _C.int8_linear_pack(
            self.dense.data_ptr(), n, k, self.packed.data_ptr(), self.row_sums.data_ptr()
        )


def random_weight(n: int, k: int) -> Weight:
    return Weight(torch.randint(-128, 128, (n, k), dtype=torch.int8))


def random_inputs(t: int, k: int) -> Tensor:
    return torch.randint(0, 256, (t, k), dtype=torch.uint8)


def exact(x: Tensor, weight: Weight, zero_point: int) -> Tensor:
    """int64 [t, n]: float64 holds every sum here exactly (all below 2^53)."""
    return ((x.double() - zero_point) @ weight.dense.double().T).long()


def accumulate(x: Tensor, weight: Weight, zero_point: int, isa: str, threads: int = 1) -> Tensor:
    (t, k), n = x.shape, weight.dense.shape[0]
    out = torch.full((t, n), 77, dtype=torch.int32)
    _C.int8_linear_accumulate(
        *(x.data_ptr(), x.stride(0), t, weight.packed.data_ptr(), weight.row_sums.data_ptr()),
        *(n, k, zero_point, out.data_ptr(), n, threads, isa),
    )
    return out


@dataclass
class Problem:
    """Everything int8_linear takes, with row strides larger than the rows."""

    weight: Weight
    x: Tensor
    x_scale: Tensor
    w_scale: Tensor
    bias: Tensor | None
    residual: Tensor | None
    zero_point: int = 128

    def run(self, activation: str, isa: str, out: Tensor | None = None, threads: int = 1) -> Tensor:
        (t, k), n = self.x.shape, self.weight.dense.shape[0]
        out = torch.full((t, n), 77.0) if out is None else out
        residual = self.residual
        _C.int8_linear(
            *(self.x.data_ptr(), self.x.stride(0), t),
            *(self.weight.packed.data_ptr(), self.weight.row_sums.data_ptr(), n, k),
            *(self.x_scale.data_ptr(), self.x_scale.numel() == t, self.zero_point),
            self.w_scale.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            activation,
            0 if residual is None else residual.data_ptr(),
            0 if residual is None else residual.stride(0),
            *(out.data_ptr(), out.stride(0), threads, isa),
        )
        return out

    def expected(self, activation: str) -> Tensor:
        acc = exact(self.x, self.weight, self.zero_point).float()
        y = acc * self.x_scale[:, None] * self.w_scale
        y = y if self.bias is None else y + self.bias
        y = ACTIVATIONS[activation](y)
        return y if self.residual is None else y + self.residual


def random_problem(
    t: int, n: int, k: int, *, bias: bool = True, residual: bool = True, per_row: bool = True
) -> Problem:
    return Problem(
        random_weight(n, k),
        random_inputs(t, k + 5)[:, :k],
        torch.rand(t if per_row else 1) * 0.01,
        torch.rand(n) * 0.01,
        torch.randn(n) if bias else None,
        torch.randn(t, n + 3)[:, :n] if residual else None,
    )


def test_generic_is_always_available() -> None:
    assert AVAILABLE[0] == "generic"


@pytest.fixture(scope="module")
def sums() -> list[tuple[Weight, Tensor, dict[int, Tensor]]]:
    """(weight, inputs, zero point -> exact sums) for every pair of sizes."""
    cases = []
    for n, k in product(OUTPUTS, INPUTS):
        weight, x = random_weight(n, k), random_inputs(max(TOKENS), k)
        raw, row_sums = exact(x, weight, 0), weight.dense.sum(1)
        cases.append((weight, x, {z: (raw - z * row_sums).int() for z in ZERO_POINTS}))
    return cases


@pytest.mark.parametrize("isa", AVAILABLE)
def test_accumulators_are_exact_for_every_shape(
    isa: str, sums: list[tuple[Weight, Tensor, dict[int, Tensor]]]
) -> None:
    for weight, x, wanted in sums:
        for t, zero_point in product(TOKENS, ZERO_POINTS):
            got = accumulate(x[:t], weight, zero_point, isa)
            assert torch.equal(got, wanted[zero_point][:t]), (t, weight.dense.shape, zero_point)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_accumulators_of_extreme_values_neither_saturate_nor_overflow(
    isa: str, zero_point: int
) -> None:
    # 65536 inputs of 255 * -128 come within 0.4 % of int32; pairs of 255 * 127 exceed int16.
    for k, value, level in product((4, 3072, _C.INT8_LINEAR_MAX_K), (-128, 127), (0, 255)):
        weight = Weight(torch.full((17, k), value, dtype=torch.int8))
        x = torch.full((7, k), level, dtype=torch.uint8)
        wanted = k * value * (level - zero_point)
        assert (accumulate(x, weight, zero_point, isa) == wanted).all(), (k, value, level)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_rows_may_be_strided_and_nothing_else_is_written(isa: str) -> None:
    weight = random_weight(70, 37)
    x = random_inputs(9, 64)[:, 11:48]  # unaligned rows, 64 bytes apart
    out = torch.full((9, 100), 77, dtype=torch.int32)
    _C.int8_linear_accumulate(
        *(x.data_ptr(), 64, 9, weight.packed.data_ptr(), weight.row_sums.data_ptr()),
        *(70, 37, 3, out[:, 10:].data_ptr(), 100, 2, isa),
    )
    assert torch.equal(out[:, 10:80].long(), exact(x, weight, 3))
    assert (out[:, :10] == 77).all() and (out[:, 80:] == 77).all()


@pytest.mark.parametrize(("n", "k"), list(product((1, 16, 17, 130), (1, 4, 5, 63, 300))))
def test_packed_bytes_lie_as_documented_and_unpack_to_the_same_weight(n: int, k: int) -> None:
    weight = random_weight(n, k)
    panels, groups = -(-n // 16), -(-k // 4)
    padded = torch.zeros(panels * 16, groups * 4, dtype=torch.int8)
    padded[:n, :k] = weight.dense
    layout = padded.view(panels, 16, groups, 4).permute(0, 2, 1, 3).reshape(-1)
    assert torch.equal(weight.packed, layout)
    assert torch.equal(weight.row_sums, padded.int().sum(1, dtype=torch.int32))
    back = torch.full_like(weight.dense, 77)
    _C.int8_linear_unpack(weight.packed.data_ptr(), n, k, back.data_ptr())
    assert torch.equal(back, weight.dense)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_epilogue_equals_the_float32_formula_bit_for_bit(isa: str, activation: str) -> None:
    # 1 and 17 outputs: tail vectors; 64: whole tiles; 131: tiles, a whole panel less, and a tail
    for n, bias, residual, per_row in product((1, 17, 64, 131), *[(False, True)] * 3):
        problem = random_problem(9, n, 70, bias=bias, residual=residual, per_row=per_row)
        got = problem.run(activation, isa, torch.full((9, n + 9), 77.0)[:, 4 : n + 4])
        assert torch.equal(got, problem.expected(activation)), (n, bias, residual, per_row)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_residual_may_be_the_output(isa: str) -> None:
    problem = random_problem(13, 131, 70)
    wanted = problem.expected("relu")
    assert problem.residual is not None
    assert torch.equal(problem.run("relu", isa, out=problem.residual), wanted)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_empty_batch_and_no_inputs(isa: str) -> None:
    assert random_problem(0, 20, 8).run("gelu", isa).shape == (0, 20)
    problem = random_problem(3, 20, 0)  # no inputs: the bias alone
    assert torch.equal(problem.run("none", isa), problem.expected("none"))


def gelu_of(values: Tensor, isa: str) -> Tensor:
    """The kernel's GELU alone: acc = 1, so the epilogue's input is 1 * 1 * value."""
    n = values.numel()
    weight = Weight(torch.ones(n, 1, dtype=torch.int8))
    one = torch.ones(1)
    x = torch.ones(1, 1, dtype=torch.uint8)
    return Problem(weight, x, one, values, None, None, zero_point=0).run("gelu", isa)[0]


def gelu_sweep() -> Tensor:
    small = torch.logspace(-44, 1, 40_000, dtype=torch.float64)
    huge = torch.logspace(1, 38, 1000, dtype=torch.float64)
    magnitudes = torch.cat([torch.linspace(0, 12, 200_001).double(), small, huge])
    return torch.cat([magnitudes, -magnitudes]).float()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_gelu_is_as_accurate_as_pytorch(isa: str) -> None:
    values = gelu_sweep()
    truth = torch.nn.functional.gelu(values.double())
    pytorch = (torch.nn.functional.gelu(values).double() - truth).abs().max()
    error = (gelu_of(values, isa).double() - truth).abs().max()
    assert error <= 2 * pytorch + 1e-7
    assert error <= 4e-7  # what docs/kernels/int8_linear.md states


@pytest.mark.parametrize("isa", AVAILABLE)
def test_gelu_of_special_values(isa: str) -> None:
    # PyTorch: NaN at -inf in every build (-inf * 0), at +inf in some.
    cases = {torch.inf: torch.inf, -torch.inf: torch.nan, torch.nan: torch.nan, -6.5: -0.0}
    cases |= {-3e38: -0.0, 3e38: 3e38, 6.0: 6.0, 0.0: 0.0}
    values = torch.tensor([*cases, -0.0])
    got, wanted = gelu_of(values, isa), torch.tensor([*cases.values(), -0.0])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(got[3:]), torch.signbit(values[3:]))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    problem = random_problem(65, 130, 300)
    assert torch.equal(problem.run("gelu", isa), problem.run("gelu", "generic"))
    values = gelu_sweep()
    assert torch.equal(gelu_of(values, isa), gelu_of(values, "generic"))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_accumulators_with_a_zero_point_a_row_are_exact(isa: str) -> None:
    # 65 tokens and 130 outputs reach whole tiles and tails.
    x, weight = random_inputs(65, 300), random_weight(130, 300)
    zero_points = (torch.arange(65) * 3 + 63).to(torch.uint8)  # 63 .. 255
    out = torch.full((65, 130), 77, dtype=torch.int32)
    _C.int8_linear_accumulate(
        *(x.data_ptr(), 300, 65, weight.packed.data_ptr(), weight.row_sums.data_ptr()),
        *(130, 300, 0, out.data_ptr(), 130, 2, isa, zero_points.data_ptr()),
    )
    shifted = x.double() - zero_points.double().unsqueeze(1)
    assert torch.equal(out.double(), shifted @ weight.dense.double().T)
