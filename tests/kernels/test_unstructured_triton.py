"""The tile kernel on unstructured weights: their layout, and products equal to those of dense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.linear.reference import accumulate
from sparse_runtime.kernels.linear.tiles import Config
from sparse_runtime.kernels.unstructured.layout import pack, unpack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.int8, torch.bfloat16, torch.float16, torch.float32]

# Less than a word, a word, words and a part, rows that end in each byte of a word.
SHAPES = [(1, 1), (3, 32), (5, 70), (4, 47), (2, 128)]


def random_matrix(shape: tuple[int, int], density: float, kind: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    matrix = torch.randint(-128, 128, shape, generator=generator)
    matrix[torch.rand(shape, generator=generator) >= density] = 0
    return (matrix if kind == torch.int8 else matrix / 64).to(kind).to(DEVICE)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int8), b.view(torch.int8))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_gives_back_every_bit(
    shape: tuple[int, int], density: float, kind: torch.dtype
) -> None:
    matrix = random_matrix(shape, density, kind)
    matrix[-1] = 0  # a row without values
    if kind != torch.int8:
        matrix[0, -1] = -0.0
    weight = pack(matrix)
    assert equal_bits(unpack(weight, shape), matrix)
    # The bytes that the page of this layout promises.
    assert weight.entries.shape == (shape[0], -(-shape[1] // 32))
    spare = 16 // matrix.element_size()  # kernels read 11 bytes beyond the last value
    stored = matrix.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[matrix.element_size()])
    assert len(weight.nonzeros) == int((stored != 0).sum()) + spare


def test_strides_and_the_highest_bit() -> None:
    matrix = torch.zeros(64, 3, dtype=torch.int8)
    matrix[31] = 7  # bit 31 of the first word
    assert torch.equal(unpack(pack(matrix.T), (3, 64)), matrix.T)


CASES = [
    # tokens, out, in: one tile; several with parts left over; inputs off a word, split
    (3, 16, 32, Config(16, 16, 32)),
    (19, 37, 96, Config(16, 32, 64)),
    (5, 20, 103, Config(16, 16, 64)),
    (4, 33, 165, Config(16, 16, 32, split_k=3)),
]


@pytest.mark.parametrize("density", [0.0, 0.12, 1.0])
@pytest.mark.parametrize(("tokens", "outputs", "inputs", "config"), CASES)
def test_integer_products_are_exact(
    multiply, tokens: int, outputs: int, inputs: int, config: Config, density: float
) -> None:
    matrix = random_matrix((outputs, inputs), density, torch.int8)
    matrix[outputs // 2] = 0
    x = random_matrix((tokens, inputs), 1.0, torch.int8)
    expected = accumulate(x.cpu(), 0, matrix.cpu())
    assert torch.equal(multiply(x, pack(matrix), len(matrix), config).double().cpu(), expected)


@pytest.mark.parametrize("kind", TYPES[1:])
@pytest.mark.parametrize(("tokens", "outputs", "inputs", "config"), CASES[1:])
def test_float_products(
    multiply, tokens: int, outputs: int, inputs: int, config: Config, kind: torch.dtype
) -> None:
    matrix = random_matrix((outputs, inputs), 0.2, kind)
    matrix[0] = -0.0
    x = random_matrix((tokens, inputs), 1.0, kind)
    # Parts of 2**12: every sum is exact in float32, in any order.
    expected = x.double() @ matrix.double().T
    assert torch.equal(multiply(x, pack(matrix), len(matrix), config).double(), expected)


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", TYPES)
def test_values_that_end_within_a_word(multiply, kind: torch.dtype) -> None:
    """The last row's values are the last there are; outputs and inputs off every tile."""
    matrix = random_matrix((21, 103), 0.3, kind)
    x = random_matrix((5, 103), 1.0, kind)
    expected = x.double() @ matrix.double().T
    config = Config(16, 16, 32, split_k=2)
    assert torch.equal(multiply(x, pack(matrix), len(matrix), config).double(), expected)


def test_a_wrong_bit_is_seen(multiply) -> None:
    matrix = random_matrix((16, 64), 0.2, torch.int8)
    x = random_matrix((4, 64), 1.0, torch.int8)
    wrong = matrix.clone()
    wrong[7, 40] += 1
    config = Config(16, 16, 64)
    assert not torch.equal(
        multiply(x, pack(matrix), len(matrix), config), multiply(x, pack(wrong), len(wrong), config)
    )
