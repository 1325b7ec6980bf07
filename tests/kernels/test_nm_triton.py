"""The tile kernel on N:M weights: their layout, and products equal to those of dense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.linear.reference import accumulate
from sparse_runtime.kernels.linear.tiles import Config
from sparse_runtime.kernels.nm.layout import pack, unpack, word_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.int8, torch.bfloat16, torch.float16, torch.float32]

# Words of every width with and without spare slots, groups of a whole word, values by themselves.
PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4), (2, 8), (4, 8), (7, 8), (1, 16), (4, 16), (12, 16)]


def random_matrix(
    shape: tuple[int, int], n: int, m: int, kind: torch.dtype, fewer: bool = True
) -> Tensor:
    """Up to N values in each M inputs, the last group cut off where the inputs end."""
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    outputs, inputs = shape
    groups = -(-inputs // m)
    matrix = torch.randint(-128, 128, (outputs, groups, m), generator=generator)
    if not fewer:
        matrix[matrix == 0] = 1
    ranks = torch.rand(matrix.shape, generator=generator).argsort(-1)
    matrix = torch.where(ranks < n, matrix, 0).flatten(1)[:, :inputs]
    return (matrix if kind == torch.int8 else matrix / 64).to(kind).to(DEVICE)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int8), b.view(torch.int8))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_unpack_gives_back_every_bit(n: int, m: int, kind: torch.dtype) -> None:
    # less than a group, a part of a word, a word, words and a part
    for shape in ((1, 1), (3, 13), (2, 32), (5, 70)):
        for fewer in (True, False):
            matrix = random_matrix(shape, n, m, kind, fewer)
            matrix[-1] = 0  # a row without values
            if kind != torch.int8:
                matrix[matrix > 1] = -0.0
            weight = pack(matrix, n, m)
            assert equal_bits(unpack(weight, shape), matrix)
            words = shape[0] * -(-shape[1] // 32)
            assert weight.masks.numel() == words
            if word_of(n, m, matrix.element_size())[0] == 0:
                # kernels read 11 bytes beyond the last value
                size = matrix.element_size()
                assert len(weight.kept) * size == words * 32 // m * n * size + 16


@pytest.mark.parametrize(
    ("n", "m", "size", "expected"),
    [
        (2, 4, 1, (8, 4)),  # two groups in four bytes
        (2, 4, 2, (4, 2)),  # four bytes rather than eight
        (1, 4, 1, (8, 2)),
        (2, 4, 4, (4, 2)),  # eight bytes: there is no narrower word
        (3, 4, 1, (4, 4)),  # one slot is spare
        (4, 8, 4, (0, 0)),  # sixteen bytes
        (1, 16, 1, (0, 0)),
    ],
)
def test_words(n: int, m: int, size: int, expected: tuple[int, int]) -> None:
    assert word_of(n, m, size) == expected


def test_refused() -> None:
    matrix = torch.ones(2, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="expected at most 2 values in 4 inputs"):
        pack(matrix, 2, 4)
    with pytest.raises(ValueError, match="unstructured layout"):
        pack(matrix, 3, 5)


CASES = [
    # tokens, out, in: one tile; several with parts left over, split; inputs off word and group
    (3, 16, 32, Config(16, 16, 32)),
    (19, 37, 192, Config(16, 32, 64, split_k=2)),
    (4, 20, 103, Config(16, 16, 32)),
]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("tokens", "outputs", "inputs", "config"), CASES)
def test_integer_products_are_exact(
    multiply, tokens: int, outputs: int, inputs: int, config: Config, n: int, m: int
) -> None:
    matrix = random_matrix((outputs, inputs), n, m, torch.int8)
    matrix[outputs // 2] = 0
    x = random_matrix((tokens, inputs), 1, 1, torch.int8)
    expected = accumulate(x.cpu(), 0, matrix.cpu())
    assert torch.equal(
        multiply(x, pack(matrix, n, m), len(matrix), config).double().cpu(), expected
    )


@pytest.mark.parametrize("kind", TYPES[1:])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_float_products(multiply, n: int, m: int, kind: torch.dtype) -> None:
    tokens, outputs, inputs, config = CASES[2]
    matrix = random_matrix((outputs, inputs), n, m, kind)
    matrix[0] = torch.where(matrix[0] != 0, -0.0, 0.0)
    x = random_matrix((tokens, inputs), 1, 1, kind)
    # Parts of 2**12: every sum is exact in float32, in any order.
    expected = x.double() @ matrix.double().T
    assert torch.equal(multiply(x, pack(matrix, n, m), len(matrix), config).double(), expected)


@pytest.mark.sanitize
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
@pytest.mark.parametrize("kind", TYPES[:2])
def test_weights_that_end_within_a_word(multiply, kind: torch.dtype, n: int, m: int) -> None:
    """Outputs and inputs off every tile; each program of a split ends elsewhere."""
    matrix = random_matrix((21, 103), n, m, kind)
    x = random_matrix((5, 103), 1, 1, kind)
    expected = x.double() @ matrix.double().T
    config = Config(16, 16, 32, split_k=2)
    assert torch.equal(multiply(x, pack(matrix, n, m), len(matrix), config).double(), expected)
