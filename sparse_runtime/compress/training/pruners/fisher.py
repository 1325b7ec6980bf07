"""Second-order pruning with a block-diagonal empirical Fisher matrix, on flat weights.

Source: "The Optimal BERT Surgeon" (oBERT, arXiv 2203.07259). With F = damp * I + mean of g g^T the
loss around the trained weights is modelled as ``1/2 d^T F d``, block by block of neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....formats.block import from_blocks, to_blocks
from ....spec import Structure

# Blocks that are solved at a time, in float64.
_SOLVED_TOGETHER = 4096


class FisherInverse:
    """Inverse of ``damp * I + mean of the gradients' g g^T``, cut into blocks on the diagonal.

    The paper updates the inverse by each gradient (Woodbury). Here the blocks themselves are summed
    and inverted once, which gives the same in a tenth of the time; in float64, so that it holds at
    a damping far below the gradients. It keeps ``ceil(size / block) * block**2`` numbers.
    """

    def __init__(
        self,
        size: int,
        *,
        block: int,
        damp: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """Begin without gradients.

        Args:
            size: number of weights; the last block is filled up with weights that get no gradient.
            block: weights in a block.
            damp: above 0.
            dtype: of the sums and the inverse.
            device: of both.
        """
        if size < 1 or block < 1 or not damp > 0:
            raise ValueError(
                "Fisher inverse: expected size and block of at least 1 and damp above 0, got "
                f"{size}, {block} and {damp}"
            )
        self.size, self.block, self.damp = size, block, damp
        # Sums of g g^T until the inverse is asked for, the inverse from then on.
        self._matrix = torch.zeros(-(-size // block), block, block, dtype=dtype, device=device)
        self._count = 0
        self._inverted = False

    def add(self, gradients: Tensor) -> None:
        """Add gradients; several at a time cost one pass over the sums.

        Args:
            gradients: float [count, size].

        Raises:
            ValueError: another shape, NaN or infinities, or the inverse was taken already.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.size:
            raise ValueError(
                f"gradients: expected [count, {self.size}], got {list(gradients.shape)}"
            )
        if self._inverted:
            raise ValueError("gradients: the inverse was taken already; add all of them before")
        if not bool(torch.isfinite(gradients).all()):
            raise ValueError(
                "gradients: expected finite numbers, got NaN or infinity; the training has diverged"
            )
        g = self._blocks(gradients.to(self._matrix.dtype)).transpose(0, 1)
        self._matrix.baddbmm_(g.transpose(1, 2), g)
        self._count += len(gradients)

    @property
    def inverse(self) -> Tensor:
        """The blocks of the inverse, [blocks, block, block]."""
        if not self._inverted:
            eye = torch.eye(self.block, dtype=torch.float64, device=self._matrix.device)
            for part in self._matrix.split(_SOLVED_TOGETHER):
                fisher = part.double() / max(1, self._count) + self.damp * eye
                part.copy_(torch.cholesky_inverse(torch.linalg.cholesky(fisher)))
            self._inverted = True
        return self._matrix

    def saliency(self, weight: Tensor) -> Tensor:
        """Rise of the loss model when one weight alone goes: ``w^2 / (2 F^-1_ii)``, [size]."""
        diagonal = self.inverse.diagonal(dim1=1, dim2=2).flatten()[: self.size]
        return weight.to(diagonal.dtype).square() / (2 * diagonal)

    def group_saliency(self, weight: Tensor, group: int) -> Tensor:
        """Rise when ``group`` neighbours Q go: ``1/2 w_Q^T (F^-1_QQ)^-1 w_Q``, [size / group].

        Raises:
            ValueError: groups do not fill blocks, or the weight is no multiple of them.
        """
        if self.block % group or self.size % group:
            raise ValueError(
                f"group of {group} weights: expected a divisor of the Fisher block {self.block} "
                f"and of {self.size} weights; give a fisher_block that is a multiple of {group}"
            )
        count = self.block // group
        parts = self._blocks(weight.to(self._matrix.dtype)).view(-1, count, group)
        corners = self.inverse.view(-1, count, group, count, group)
        inner = corners.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        solved = torch.linalg.solve(inner, parts.unsqueeze(-1)).squeeze(-1)
        return (0.5 * (parts * solved).sum(-1)).flatten()[: self.size // group]

    def prune(self, weight: Tensor, keep: Tensor) -> Tensor:
        """The weight with zeros outside ``keep``, and what is kept moved to make up for them.

        Minimises ``1/2 d^T F d`` over all changes d that make the pruned weights 0, exactly within
        each block: ``d = -F^-1_:Q (F^-1_QQ)^-1 w_Q``.

        Args:
            weight: float [size].
            keep: bool [size].

        Returns:
            [size], in the weight's dtype.
        """
        weights, gone = self._blocks(weight), self._blocks(~keep)
        moved = torch.empty_like(weights)
        for start in range(0, len(weights), _SOLVED_TOGETHER):
            part = slice(start, start + _SOLVED_TOGETHER)
            moved[part] = _compensated(weights[part], gone[part], self.inverse[part])
        return torch.where(keep, moved.flatten()[: self.size], 0.0)

    def _blocks(self, flat: Tensor) -> Tensor:
        """[..., size] -> [..., blocks, block]."""
        return pad(flat, (0, -self.size % self.block)).unflatten(-1, (-1, self.block))


def _compensated(weights: Tensor, gone: Tensor, inverse: Tensor) -> Tensor:
    """Blocks [n, block] after the joint update; the rows and columns of Q alone are solved."""
    inverse, chosen = inverse.double(), gone.double()
    corner = inverse * chosen.unsqueeze(1) * chosen.unsqueeze(2)
    corner.diagonal(dim1=1, dim2=2).add_(1 - chosen)
    multipliers = torch.linalg.solve(corner, weights.double() * chosen)
    return (weights - (inverse @ multipliers.unsqueeze(-1)).squeeze(-1)).to(weights.dtype)


def flat_order(weight: Tensor, structure: Structure) -> Tensor:
    """A matrix [out, in] as a vector in which what is pruned together stands together.

    Blocks one after the other where the structure is of blocks (zeros fill the edges), else rows.
    """
    return to_blocks(weight, structure).flatten() if structure.kind == "block" else weight.flatten()


def matrix_order(flat: Tensor, structure: Structure, shape: tuple[int, int]) -> Tensor:
    """Undo :func:`flat_order`."""
    if structure.kind != "block":
        return flat.view(shape)
    grid = (-(-shape[0] // structure.rows), -(-shape[1] // structure.cols))
    return from_blocks(flat.view(*grid, -1), structure, shape)


def matrix_saliency(weight: Tensor, structure: Structure, fisher: FisherInverse) -> Tensor:
    """Saliency of each weight [out, in]; of a block, all of it at the block's first weight.

    So that the sum over a block is the block's saliency, edges included.

    Args:
        weight: float [out, in].
        structure: unstructured, N:M or block.
        fisher: of the weight in :func:`flat_order`.
    """
    shape = (weight.shape[0], weight.shape[1])
    flat = flat_order(weight, structure)
    if structure.kind != "block":
        return fisher.saliency(flat).view(shape)
    size = structure.rows * structure.cols
    scores = fisher.group_saliency(flat, size)
    spread = pad(scores.unsqueeze(1), (0, size - 1))
    return matrix_order(spread.flatten(), structure, shape)
