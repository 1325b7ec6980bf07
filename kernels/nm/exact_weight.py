"""Any matrix as 2:4 and a rest, in the order of csrc/cuda/mma_linear/weights.h."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .exact_split import GROUP, KEPT

TILE_OUTPUTS, SLAB_INPUTS = 16, 64


class ExactWeight(NamedTuple):
    """Any matrix as 2:4 and a rest, in the order of the kernels of structure "exact".

    Attributes:
        two_of_four: uint8, packed.
        rest: uint8 [places, bytes]: what exceeds two of four, only slabs with nonzeros.
        rest_places: int32 [tiles of 16 outputs, slabs of 64 inputs]: ``4 * place + mask``; bit i of
            the mask says whether the i-th 64 bytes of inputs have any; 0: none.
    """

    two_of_four: Tensor
    rest: Tensor
    rest_places: Tensor

    @property
    def extra(self) -> float:
        """Share of (16 outputs, 64 inputs) that the kernel multiplies twice, from 0 to 1."""
        return len(self.rest) / self.rest_places.numel()


def crowded_slabs(matrix: Tensor) -> Tensor:
    """Which slabs of a matrix [out, in] have a rest: some four inputs with over two nonzeros.

    Returns:
        bool [tiles of 16 outputs, slabs of 64 inputs].
    """
    rows, columns = -matrix.shape[0] % TILE_OUTPUTS, -matrix.shape[1] % SLAB_INPUTS
    groups = pad(matrix != 0, (0, columns, 0, rows)).unflatten(1, (-1, SLAB_INPUTS // GROUP, GROUP))
    crowded = (groups.sum(-1, dtype=torch.int8) > KEPT).any(-1)
    return crowded.unflatten(0, (-1, TILE_OUTPUTS)).any(1)


def place_slabs(rest: Tensor) -> Tensor:
    """``ExactWeight.rest_places`` of a rest [out, in], whose slabs are numbered row by row."""
    pieces = rest.element_size()  # of 64 bytes of inputs in a slab
    rows, columns = -rest.shape[0] % TILE_OUTPUTS, -rest.shape[1] % SLAB_INPUTS
    tiled = pad(rest != 0, (0, columns, 0, rows)).unflatten(0, (-1, TILE_OUTPUTS))
    filled = tiled.any(1).unflatten(1, (-1, pieces, SLAB_INPUTS // pieces)).any(-1)
    bits = torch.arange(pieces, dtype=torch.int32, device=rest.device)
    masks = (filled.int() << bits).sum(-1, dtype=torch.int32)
    places = (masks != 0).flatten().cumsum(0).view_as(masks) - 1
    return torch.where(masks != 0, 4 * places + masks, 0).int()
