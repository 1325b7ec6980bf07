"""What random weights leave beside 2:4, before and after their inputs are ordered, as Markdown.

    python -m sparse_runtime.benchmarks.exact_rest --shape bert-base --sparsity 80 90 95

docs/kernels/exact_2to4.md explains the columns; nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_runtime.benchmarks.encoder_shapes import load_shape, shape_names
from sparse_runtime.kernels.nm.exact_split import GROUP, KEPT
from sparse_runtime.kernels.nm.exact_weight import crowded_slabs
from sparse_runtime.kernels.nm.input_order import find_input_order

SPARSITIES = (80, 83, 85, 88, 90, 93, 95, 97)
INT8_BYTES, HALF_BYTES = 0.625, 0.5625
"""Of a dense weight's, that 2:4 with its metadata takes."""


@dataclass(frozen=True)
class Rest:
    """What a matrix leaves beside 2:4; shares from 0 to 1.

    Attributes:
        entries: of the nonzeros.
        groups: of four inputs of an output.
        slabs: of 16 outputs and 64 inputs, which the kernel multiplies twice.
    """

    entries: float
    groups: float
    slabs: float

    @property
    def products(self) -> float:
        """Tensor-core time over that of the dense kernel with the same tiles."""
        return (1 + self.slabs) / 2

    def weight_bytes(self, two_of_four: float) -> float:
        """Bytes of the weight over the dense one's, from those of 2:4."""
        return two_of_four * (1 + self.slabs)


def rest_of(matrix: Tensor) -> Rest:
    """Count in a matrix [out, in]."""
    counts = pad(matrix != 0, (0, -matrix.shape[1] % GROUP)).unflatten(1, (-1, GROUP)).sum(-1)
    beyond = (counts - KEPT).clamp(min=0)
    return Rest(
        entries=float(beyond.sum()) / max(1, int(counts.sum())),
        groups=float((beyond > 0).float().mean()),
        slabs=float(crowded_slabs(matrix).float().mean()),
    )


def random_matrix(shape: tuple[int, int], sparsity: int, seed: int = 0) -> Tensor:
    """bool [out, in] with so many percent zeros, at random positions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) >= sparsity / 100


def compare(shape: tuple[int, int], sparsity: int, unit: int | None) -> tuple[Rest, Rest]:
    """A random matrix as it is, and with its inputs ordered (within ``unit`` of them)."""
    matrix = random_matrix(shape, sparsity)
    return rest_of(matrix), rest_of(matrix[:, find_input_order(matrix, unit=unit)])


def rows(
    shapes: Sequence[tuple[int, int]], sparsities: Sequence[int], unit: int | None
) -> Iterator[str]:
    """Lines of the table, percent but for the last two columns."""
    yield "| out x in | sparsity | rest | groups | slabs | products | int8 bytes | 16-bit bytes |"
    yield "|---" * 8 + "|"
    for shape in shapes:
        for sparsity in sparsities:
            given, ordered = compare(shape, sparsity, unit)
            cells = [
                f"{shape[0]} x {shape[1]}",
                str(sparsity),
                *(
                    f"{100 * getattr(given, name):.2f} -> {100 * getattr(ordered, name):.2f}"
                    for name in ("entries", "groups")
                ),
                f"{100 * given.slabs:.1f} -> {100 * ordered.slabs:.1f}",
                f"{given.products:.2f} -> {ordered.products:.2f}",
                *(
                    f"{given.weight_bytes(kept):.2f} -> {ordered.weight_bytes(kept):.2f}"
                    for kept in (INT8_BYTES, HALF_BYTES)
                ),
            ]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=shape_names(), default=["bert-base"])
    parser.add_argument("--sparsity", nargs="+", type=int, default=list(SPARSITIES))
    parser.add_argument("--unit", type=int, help="inputs stay within so many; anywhere without it")
    options = parser.parse_args()
    shapes = [size for name in options.shape for size in load_shape(name).linears.values()]
    for line in rows(list(dict.fromkeys(shapes)), options.sparsity, options.unit):
        print(line, flush=True)


if __name__ == "__main__":
    main()
