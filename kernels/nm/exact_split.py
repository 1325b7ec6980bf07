"""Any matrix as 2:4 plus a remainder, to the last bit (docs/kernels/exact_2to4.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 4
KEPT = 2


class Remainder(NamedTuple):
    """Entries of a matrix, row by row, columns ascending.

    Attributes:
        offsets: int32 [rows + 1]; row ``r`` has entries ``offsets[r]`` to ``offsets[r + 1]``.
        columns: int32 [entries].
        entries: [entries], of the matrix's type.
    """

    offsets: Tensor
    columns: Tensor
    entries: Tensor

    def matrix(self, columns: int) -> Tensor:
        """The entries as a matrix [rows, columns], zeros elsewhere."""
        rows = len(self.offsets) - 1
        counts = (self.offsets[1:] - self.offsets[:-1]).long()
        row = torch.repeat_interleave(torch.arange(rows, device=counts.device), counts)
        matrix = self.entries.new_zeros(rows, columns)
        return matrix.index_put_((row, self.columns.long()), self.entries)


def split(matrix: Tensor) -> tuple[Tensor, Remainder]:
    """Take from every four inputs of a row what exceeds two nonzeros.

    Of each group the two entries of largest magnitude stay, of equal ones the first. What goes to
    the remainder is nonzero (a group keeps its ``-0.0``), at most two of a group: the remainder is
    2:4 as well.

    Args:
        matrix: int8 or float [out, in]; ``in`` may be any number.

    Returns:
        ``(two_of_four, remainder)``: ``two_of_four`` is ``matrix`` with zeros where the remainder
        has entries, so ``two_of_four + remainder.matrix(in) == matrix``.
    """
    exceeds = _exceeds_two(matrix)
    row, column = exceeds.nonzero(as_tuple=True)
    counts = exceeds.sum(1)
    offsets = pad(counts.cumsum(0), (1, 0)).int()
    two_of_four = matrix.masked_fill(exceeds, 0)
    return two_of_four, Remainder(offsets, column.int(), matrix[row, column])


def _exceeds_two(matrix: Tensor) -> Tensor:
    """Bool [out, in]: nonzero, and not among the two largest of its group."""
    columns = matrix.shape[1]
    magnitude = pad(matrix.float().abs(), (0, -columns % GROUP)).unflatten(1, (-1, GROUP))
    rank = torch.zeros(magnitude.shape, dtype=torch.int8, device=matrix.device)
    for place in range(GROUP):
        for other in range(GROUP):
            if other == place:
                continue
            # Of equal magnitudes the first ranks higher.
            before = torch.ge if other < place else torch.gt
            rank[..., place] += before(magnitude[..., other], magnitude[..., place])
    return ((rank >= KEPT) & (magnitude != 0)).flatten(1)[:, :columns]
