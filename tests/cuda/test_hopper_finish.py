"""The epilogue of the wgmma kernels on the host, from their sums on, against the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.cuda_interface import describe_layer
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_static,
)

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas")
Finish = Callable[..., None]


@pytest.fixture(scope="module")
def handle(checkout_root: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """hopper_finish.cc, compiled."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    library = tmp_path_factory.mktemp("hopper") / "finish.so"
    csrc = checkout_root / "csrc"
    sources = [checkout_root / "tests/cuda/hopper_finish.cc", csrc / "cuda/emulate/emulate.cc"]
    command = [compiler, *FLAGS, f"-I{csrc}", *map(str, sources), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def finish(handle: ctypes.CDLL) -> Finish:
    """Runs hopper_finish.cc on a layer."""

    def run(layer, by_four: bool, integers: bool) -> None:
        error = ctypes.create_string_buffer(500)
        arguments = (ctypes.byref(layer), int(by_four), int(integers), error)
        if handle.finish_rows(*arguments, c_int64(len(error))):
            raise RuntimeError(error.value.decode())

    return run


class Problem(NamedTuple):
    x: Quantized
    weight: Tensor
    epilogue: Epilogue
    target: Target

    def expected(self, activation: str | None) -> Tensor:
        zero = 0 if self.x.zero is None else self.x.zero
        e = self.epilogue
        given = (self.x.q, zero, self.x.scale, self.weight, e.weight_scale)
        return integer_linear(*given, e.bias, activation, e.residual)

    def sums(self) -> Tensor:
        """As the tensor cores leave them, outputs padded with what nobody may read."""
        outputs = len(self.weight)
        sums = torch.full((len(self.x.q), -(-outputs // 64) * 64), 123, dtype=torch.int32)
        sums[:, :outputs] = self.x.q.int() @ self.weight.int().T
        return sums


def make_problem(
    tokens: int, outputs: int, scheme: str, floats: torch.dtype, residual: bool = False
) -> Problem:
    generator = torch.Generator().manual_seed(tokens * outputs)
    weight = torch.randint(-127, 128, (outputs, 32), generator=generator).to(torch.int8)
    q, scale, zero = quantize_rows_asymmetric(torch.randn(tokens, 32, generator=generator))
    x = Quantized((q - 128).to(torch.int8), 32, scale, zero - 128, 1)
    epilogue = Epilogue(
        weight_scale=torch.rand(outputs, generator=generator) * 0.01,
        weight_sum=weight.int().sum(1).int(),
        bias=torch.randn(outputs, generator=generator),
    )
    if residual:
        rows = torch.randn(tokens, outputs + 4, generator=generator)[:, :outputs].to(floats)
        epilogue = epilogue._replace(residual=rows, residual_stride=outputs + 4)
    quantized, dynamic = scheme != "none", scheme not in ("none", "static")
    target = Target(
        floats=torch.full((tokens, outputs), 7.0, dtype=floats),
        floats_stride=outputs,
        q=torch.zeros(tokens, outputs, dtype=torch.int8) if quantized else None,
        q_stride=outputs,
        scale=torch.full((tokens,), 0.05) if quantized else None,
        zero=torch.full((tokens,), 3, dtype=torch.int32) if quantized else None,
        ranges=torch.zeros(2, tokens, dtype=torch.int32) if dynamic else None,
        counters=None,
    )
    return Problem(x, weight, epilogue, target)


def run(finish: Finish, problem: Problem, activation: str | None, scheme: str) -> None:
    outputs = len(problem.weight)
    given = (problem.epilogue, activation, problem.target, scheme)
    layer = describe_layer(problem.x, problem.weight, outputs, *given)
    sums = problem.sums()
    layer.partials = c_void_p(sums.data_ptr())
    finish(layer, outputs % 4 == 0, integers=True)


# Rows that go four by four, ending within a block; rows that go one by one; one result.
@pytest.mark.parametrize("shape", [(35, 68), (33, 70), (1, 1)])
@pytest.mark.parametrize("floats", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_equal_the_reference(finish, floats, shape) -> None:
    problem = make_problem(*shape, "none", floats)
    run(finish, problem, None, "none")
    assert torch.equal(problem.target.floats, problem.expected(None).to(floats))


@pytest.mark.parametrize("outputs", [68, 70])  # by four, one by one
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "tanh"])
def test_activation_and_residual(finish, activation: str, outputs: int) -> None:
    problem = make_problem(9, outputs, "none", torch.float32, residual=True)
    run(finish, problem, activation, "none")
    expected = problem.expected(activation)
    torch.testing.assert_close(problem.target.floats, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outputs", [68, 70])
def test_static_scales_quantize_what_was_stored(finish, outputs: int) -> None:
    problem = make_problem(35, outputs, "static", torch.bfloat16, residual=True)
    run(finish, problem, None, "static")
    stored = problem.target.floats.float()
    assert torch.equal(problem.target.q.int(), quantize_static(stored, 0.05, 3, -128, 127))


def test_ranges_hold_the_largest_magnitudes_of_each_row(finish) -> None:
    problem = make_problem(35, 130, "asymmetric", torch.float16)  # three blocks of outputs
    run(finish, problem, None, "asymmetric")
    stored = problem.target.floats.float()
    below, above = problem.target.ranges.view(torch.float32)
    assert torch.equal(below, (-stored).clamp_min(0).amax(1))
    assert torch.equal(above, stored.clamp_min(0).amax(1))
    _, scale = quantize_rows(stored)  # the scale that quantize_rows.cu derives from them
    assert torch.equal(scale, torch.maximum(below, above) / 127)


def test_outputs_are_requantized_where_they_have_quantizers(finish) -> None:
    problem = make_problem(5, 68, "none", torch.float32)
    numbers = [torch.full((68,), n, dtype=torch.int32) for n in (2, -100, 90)]
    scale = torch.where(torch.arange(68) < 40, 0.03, 0.0)  # none from 40 on
    epilogue = problem.epilogue._replace(
        out_scale=scale, out_zero=numbers[0], out_low=numbers[1], out_high=numbers[2]
    )
    problem = problem._replace(epilogue=epilogue)
    run(finish, problem, None, "none")
    plain = problem.expected(None)
    requantized = (quantize_static(plain, 0.03, 2, -100, 90) - 2).float() * torch.tensor(0.03)
    assert torch.equal(problem.target.floats[:, 40:], plain[:, 40:])
    assert torch.equal(problem.target.floats[:, :40], requantized[:, :40])


def test_quotients_by_an_inverse_quantize_as_divisions_do(handle: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(5)
    count = 1 << 21
    scale = torch.rand(count, generator=generator).add(1).mul(0.01)
    scale[::5] *= 2.0 ** torch.randint(-70, 70, (len(scale[::5]),), generator=generator)
    scale[::7] = 0.0100000007  # one scale for many values, as layers have
    halves = torch.randint(-300, 300, (count,), generator=generator) + 0.5
    x = (halves.double() * scale.double()).float()  # where the next float decides
    x[1::4] = torch.nextafter(x[1::4], torch.tensor(torch.inf))
    x[2::4] = torch.nextafter(x[2::4], torch.tensor(-torch.inf))
    x[3::4] *= torch.rand(len(x[3::4]), generator=generator) * 1e5
    specials = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 1e-45])
    x[:8], x[8:16], x[16:24] = specials, specials, specials
    scale[:8], scale[8:16], scale[16:24] = 1e-10, 0.05, 1e30
    scale[24:28] = torch.tensor([1e-45, 3e38, 0.0, 1e-30])
    handle.wrong_quotients.restype = c_int64
    given = (c_void_p(x.data_ptr()), c_void_p(scale.data_ptr()), c_int64(count))
    assert handle.wrong_quotients(*given) == 0
