"""Weights in the order of csrc/cuda/hopper_linear/layout.h, packed by torch on any device.

For weights that lie on a GPU. What the library packs in main memory, in C++, has the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_ATOM_OUTPUTS = 64
_TILE_BYTES = 128


def pack_hopper(matrix: Tensor, structure: str) -> Tensor:
    """Bring a weight into the order of the wgmma kernels, on its device.

    Args:
        matrix: int8, bf16 or fp16 [out, in].
        structure: "dense" or "2:4".

    Returns:
        uint8 [packed bytes].

    Raises:
        ValueError: "2:4", and more than two of four inputs are nonzero.
    """
    each = matrix.element_size()
    padded = pad(matrix, (0, -matrix.shape[1] % (_TILE_BYTES // each))).contiguous()
    if structure == "dense":
        return padded.view(torch.uint8).flatten()
    # By bits: -0.0 is kept where there is room for it.
    bits = padded.view(torch.int8 if each == 1 else torch.int16).view(len(matrix), -1, 4)
    nonzero = padded.view_as(bits) != 0
    if bool((nonzero.sum(-1) > 2).any()):
        raise ValueError("weight: expected at most two nonzero values in every four inputs")
    worth = nonzero.to(torch.int8) + (bits != 0).to(torch.int8)
    kept = worth.argsort(dim=-1, descending=True, stable=True)[..., :2].sort(-1).values
    values = bits.gather(-1, kept).flatten().view(torch.uint8)
    positions = kept[..., 0] | kept[..., 1] << 2
    return torch.cat([pad(values, (0, -len(values) % 128)), _metadata(positions, each)])


def _metadata(positions: Tensor, each: int) -> Tensor:
    """int64 [out, groups of four] below 16 -> uint8: atoms of 64 outputs by one tile of inputs."""
    groups = _TILE_BYTES // each // 4  # of an atom
    atoms = pad(positions, (0, 0, 0, -len(positions) % _ATOM_OUTPUTS))
    if each == 1:  # [o: 64][g: 32]
        split = atoms.view(-1, 64, atoms.shape[1] // groups, groups)
        ordered = split.permute(2, 0, 1, 3)
    else:  # [o / 16: 4][g / 4 % 2][o % 8][g / 8: 2][o / 8 % 2][g % 4]
        split = atoms.view(-1, 4, 2, 8, atoms.shape[1] // groups, 2, 2, 4)
        ordered = split.permute(4, 0, 1, 6, 3, 5, 2, 7)
    nibbles = ordered.reshape(-1, 2)
    return (nibbles[:, 0] | nibbles[:, 1] << 4).to(torch.uint8)
