"""In which order a matrix's inputs leave the least beside 2:4.

A product does not change when the columns of ``x`` and of the weight are permuted alike. Which four
inputs share a group decides how many nonzeros exceed two of four; which sixteen groups share a slab
of 64 inputs decides how many tiles of 16 outputs a kernel visits twice.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from .exact_split import GROUP
from .exact_weight import SLAB_INPUTS, TILE_OUTPUTS

SLAB_GROUPS = SLAB_INPUTS // GROUP
WORK = 4e8
"""Words of 64 outputs that the search reads at most: 2 to 3 s of one core."""
MOST_ROUNDS = 1000

Bits = NDArray[np.uint64]

# The 35 ways to part eight columns into two groups: all fours that hold column 0, and the others.
_FOURS = [four for four in combinations(range(8), 4) if 0 in four]
_PARTS = np.array([(*four, *sorted({*range(8)} - {*four})) for four in _FOURS])


def find_input_order(
    nonzero: Tensor, seed: int = 0, unit: int | None = None, work: float = WORK
) -> Tensor:
    """Search for an order of inputs with a small remainder (``exact_split.split``).

    Starts from the given order and only accepts what is smaller, so the result never has a larger
    remainder. Groups are paired at random, and each pair's eight inputs are parted in the best of
    all 35 ways; then groups that overflow in the same tiles are put into the same slabs. The same
    matrix and seed give the same order; the work is bounded, whatever the clock says.

    Args:
        nonzero: bool [out, in], or a matrix whose nonzeros count.
        seed: of the random pairs.
        unit: inputs stay within so many consecutive ones; None: they go anywhere.
        work: words of 64 outputs that may be read, about 2 s of one core for 4e8.

    Returns:
        int64 [in]: ``matrix[:, order]`` and ``x[:, order]`` have the same product.
    """
    nonzero, inputs = nonzero != 0, nonzero.shape[1]
    if unit is None or inputs == 0:
        return _order_within(nonzero, seed, work)
    parts = nonzero.split(unit, 1)
    share = work / len(parts)
    return torch.cat([i * unit + _order_within(part, seed, share) for i, part in enumerate(parts)])


def _order_within(nonzero: Tensor, seed: int, work: float) -> Tensor:
    inputs = nonzero.shape[1]
    whole = inputs // GROUP * GROUP  # what is left of the last group stays where it is
    columns = _pack_columns(nonzero[:, :whole])
    groups = _part_groups(columns, np.random.default_rng(seed), work)
    groups = groups[slab_order(_overflows(nonzero, groups))]
    return torch.cat((torch.from_numpy(groups.ravel()), torch.arange(whole, inputs)))


def _pack_columns(nonzero: Tensor) -> Bits:
    """uint64 [inputs, words]: one bit a row."""
    columns = pad(nonzero, (0, 0, 0, -len(nonzero) % 64)).T.contiguous().numpy()
    return np.packbits(columns, axis=1).view(np.uint64)


def _part_groups(columns: Bits, random: np.random.Generator, work: float) -> NDArray[np.int64]:
    groups = np.arange(len(columns), dtype=np.int64).reshape(-1, GROUP)
    pairs = len(groups) // 2
    if pairs == 0 or columns.shape[1] == 0:
        return groups
    rounds = int(min(MOST_ROUNDS, work / (pairs * len(_PARTS) * 2 * columns.shape[1])))
    for _ in range(rounds):
        chosen = random.permutation(len(groups))[: 2 * pairs].reshape(pairs, 2)
        eight = groups[chosen].reshape(pairs, 8)
        best, left = _best_parts(columns[eight])
        groups[chosen] = np.take_along_axis(eight, _PARTS[best], 1).reshape(pairs, 2, GROUP)
        if not left.any() and 2 * pairs == len(groups):
            break  # all is two of four
    return groups


def _best_parts(eight: Bits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """columns [pairs, 8, words] -> which of _PARTS leaves least, and how much.

    The first where none is better: the two groups as they are.
    """
    left: dict[tuple[int, ...], NDArray[np.int64]] = {}
    twos = list(combinations(range(8), 2))
    both: dict[tuple[int, ...], Bits] = {(i, j): eight[:, i] & eight[:, j] for i, j in twos}
    either: dict[tuple[int, ...], Bits] = {(i, j): eight[:, i] | eight[:, j] for i, j in twos}
    for four in combinations(range(8), 4):
        first, second = four[:2], four[2:]
        at_least_three: Bits = (both[first] & either[second]) | (both[second] & either[first])
        all_four: Bits = both[first] & both[second]
        left[four] = _count(at_least_three) + _count(all_four)
    parts = [left[tuple(part[:4])] + left[tuple(part[4:])] for part in _PARTS.tolist()]
    return np.argmin(np.stack(parts), 0), np.min(np.stack(parts), 0)


def _count(words: Bits) -> NDArray[np.int64]:
    """Set bits of each row."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words).sum(-1, dtype=np.int64)
    return np.unpackbits(words.view(np.uint8), axis=-1).sum(-1, dtype=np.int64)


def _overflows(nonzero: Tensor, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool [groups, tiles of outputs]: a row of the tile has more than two of the group."""
    tiles = pad(nonzero, (0, 0, 0, -len(nonzero) % TILE_OUTPUTS)).unflatten(0, (-1, TILE_OUTPUTS))
    counts = sum(tiles[..., torch.from_numpy(groups[:, i])].to(torch.int8) for i in range(GROUP))
    return (counts > 2).any(1).T.numpy()


def slab_order(overflows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Order of groups in which few tiles of (16 outputs, 16 groups) overflow anywhere.

    A slab begins with the group that overflows in most tiles and takes those that agree with it
    best, slab by slab; no order, where that would be no better.
    """
    left = overflows.astype(np.float32)
    free = np.ones(len(left), bool)
    order = []
    for place in range(len(left)):
        if place % SLAB_GROUPS == 0:
            union = np.zeros(left.shape[1], np.float32)
            score = left.sum(1)
        else:
            score = left @ (2 * union - 1)  # tiles shared less tiles added
        chosen = int(np.argmax(np.where(free, score, -np.inf)))
        order.append(chosen)
        free[chosen] = False
        union = np.maximum(union, left[chosen])
    found = np.array(order, dtype=np.int64)
    as_given = np.arange(len(left))
    return found if _tiles(overflows[found]) < _tiles(overflows) else as_given


def _tiles(overflows: NDArray[np.bool_]) -> int:
    starts = np.arange(0, len(overflows), SLAB_GROUPS)
    return int(np.logical_or.reduceat(overflows, starts).sum()) if len(starts) else 0
