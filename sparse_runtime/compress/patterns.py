"""From scores to masks: unstructured, N:M and blocks, in one matrix or ranked over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..formats import parse_prune
from ..formats.block import from_blocks, to_blocks
from ..formats.project import keep_largest, keep_of_groups
from ..spec import Structure

Reduce = Literal["norm", "sum"]


@dataclass(frozen=True)
class Pattern:
    """A structure and how much of a matrix is zero in it. Build it with :meth:`parse`.

    Attributes:
        structure: unstructured, N:M or block.
        sparsity: share of zeros, of weights or of whole blocks, from 0 to below 1. For N:M, None is
            the whole pattern, 1 - N/M; a lower share is a step on the way there, see :meth:`at`.
    """

    structure: Structure
    sparsity: float | None = None

    def __post_init__(self) -> None:
        if self.structure.kind == "dense":
            raise ValueError("pattern 'dense': nothing to prune; expected another structure")
        if self.sparsity is None:
            if self.structure.kind != "nm":
                raise ValueError(
                    f"pattern {self.structure}: expected a sparsity, such as "
                    f"'{self.structure}@0.9', got none"
                )
            return
        if not 0 <= self.sparsity < 1:
            raise ValueError(
                f"pattern {self.structure}: expected a sparsity from 0 to below 1, got "
                f"{self.sparsity}"
            )
        most = self._most
        if self.sparsity > most:
            raise ValueError(
                f"pattern {self.structure}: has at most sparsity {most:g}, got {self.sparsity}"
            )

    @classmethod
    def parse(cls, text: str, argument: str = "pattern") -> Pattern:
        """Read "2:4", "unstructured@0.9" or "block:1x4@0.8".

        Args:
            text: one of these.
            argument: what to call it in errors.

        Raises:
            ValueError: for any other text.
        """
        return cls(*parse_prune(text, argument))

    def __str__(self) -> str:
        return str(self.structure) + ("" if self.sparsity is None else f"@{self.sparsity:g}")

    @property
    def final_sparsity(self) -> float:
        """Share of zeros, of weights or of blocks, that a mask of this pattern has."""
        return self._most if self.sparsity is None else self.sparsity

    @property
    def _most(self) -> float:
        if self.structure.kind == "nm":
            return 1 - self.structure.n / self.structure.m
        return math.nextafter(1, 0)

    def units(self, rows: int, cols: int) -> int:
        """Of a matrix [rows, cols], how many weights or blocks go or stay as one."""
        if self.structure.kind != "block":
            return rows * cols
        return -(-rows // self.structure.rows) * -(-cols // self.structure.cols)

    def at(self, sparsity: float) -> Pattern:
        """The same structure at another sparsity, for schedules.

        On the way to N:M, only weights that N:M drops are dropped: of those, the lowest scores of
        the matrix first, until sparsity 1 - N/M has dropped them all. So a mask at less sparsity
        holds the whole one, and no group ever has fewer than N.
        """
        return Pattern(self.structure, sparsity)

    def mask(self, scores: Tensor, *, reduce: Reduce = "norm") -> Tensor:
        """Keep the highest scores of one matrix.

        With the magnitudes of a weight this is the mask of :func:`~sparse_runtime.formats.project`,
        ties and counts included: ``round(sparsity * count)`` weights or blocks are dropped, and of
        equal scores the lower index stays.

        Args:
            scores: float [out, in]; finite, may be negative.
            reduce: blocks only, the score of one: "norm", the square root of the sum of squares
                (for magnitudes), or "sum" (for losses and learned scores).

        Returns:
            Bool [out, in], True for what stays.

        Raises:
            ValueError: the scores are no float matrix, or one is not finite.
        """
        units = self._units(scores, reduce)
        return self._expand(self._keep({"": units}, 0.0)[""], scores)

    def _units(self, scores: Tensor, reduce: Reduce) -> Tensor:
        """Scores of what is dropped or kept as one: weights, or blocks."""
        if scores.ndim != 2 or not scores.is_floating_point() or scores.numel() == 0:
            raise ValueError(
                "scores: expected a 2-D float matrix of at least one element, got "
                f"{scores.dtype} {list(scores.shape)}"
            )
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                "scores: expected finite numbers, got NaN or infinity; the training has diverged"
            )
        if self.structure.kind != "block":
            return scores.detach()
        blocks = to_blocks(scores.detach(), self.structure).double()
        return blocks.sum(-1) if reduce == "sum" else torch.linalg.vector_norm(blocks, dim=-1)

    def _expand(self, keep: Tensor, scores: Tensor) -> Tensor:
        if self.structure.kind != "block":
            return keep
        size = self.structure.rows * self.structure.cols
        blocks = keep.unsqueeze(-1).expand(*keep.shape, size).contiguous()
        return from_blocks(blocks, self.structure, (scores.shape[0], scores.shape[1]))

    def _keep(self, units: Mapping[str, Tensor], floor: float) -> dict[str, Tensor]:
        """Which units stay, ranked over all matrices together."""
        if self.structure.kind == "nm":
            return self._keep_groups(units)
        total = sum(scores.numel() for scores in units.values())
        count = total - round(self.final_sparsity * total)
        raised = {name: _with_floor(scores, floor) for name, scores in units.items()}
        ranked = torch.cat([scores.flatten() for scores in raised.values()])
        least = int(torch.isposinf(ranked).sum()) if floor else 0
        if least > count:
            raise ValueError(
                f"pattern {self}: keeps {count} of {total}, but floor={floor:g} alone keeps "
                f"{least}; give a smaller floor"
            )
        return _split(keep_largest(ranked, count), units)

    def _keep_groups(self, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = {name: keep_of_groups(scores, self.structure) for name, scores in units.items()}
        if self.sparsity is None or self.sparsity >= self._most:
            return whole
        # What N:M keeps, kept for certain; what it drops, by score.
        ranked = torch.cat(
            [
                torch.where(whole[name], math.inf, scores.double()).flatten()
                for name, scores in units.items()
            ]
        )
        kept = sum(int(keep.sum()) for keep in whole.values())
        back = round((1 - self.sparsity / self._most) * (ranked.numel() - kept))
        return _split(keep_largest(ranked, kept + back), units)


def global_masks(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    *,
    floor: float = 0.01,
    reduce: Reduce = "norm",
) -> dict[str, Tensor]:
    """Masks by one ranking over all matrices, which may end at different sparsities.

    N:M ends at N:M in every matrix; only the way there is ranked.

    Args:
        scores: float [out, in] by name; comparable from matrix to matrix.
        pattern: of all matrices together.
        floor: share of its weights or blocks, at least one, that each matrix keeps; N:M has none.
        reduce: as in :meth:`Pattern.mask`.

    Returns:
        Bool [out, in] by name.

    Raises:
        ValueError: as in :meth:`Pattern.mask`; or the floor keeps more than the pattern.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor {floor}: expected a share above 0 and at most 1")
    if not scores:
        raise ValueError("scores: expected at least one matrix, got none")
    units = {name: pattern._units(one, reduce) for name, one in scores.items()}
    keep = pattern._keep(units, floor)
    return {name: pattern._expand(keep[name], one) for name, one in scores.items()}


def sparsity(mask: Tensor) -> float:
    """Share of False in a mask, or of zeros in a weight."""
    return 1 - int(torch.count_nonzero(mask)) / mask.numel()


def _with_floor(scores: Tensor, floor: float) -> Tensor:
    """Scores in which the largest ``floor`` of them cannot lose."""
    if not floor:
        return scores
    least = keep_largest(scores, floor_units(floor, scores.numel()))
    return torch.where(least, math.inf, scores)


def floor_units(floor: float, units: int) -> int:
    """How many of a matrix's weights or blocks a floor keeps: rounded down, and at least one."""
    return max(1, math.floor(floor * units))


def _split(keep: Tensor, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = keep.split([scores.numel() for scores in units.values()])
    return {name: part.view_as(units[name]) for name, part in zip(units, parts, strict=True)}
