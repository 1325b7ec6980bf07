"""Fisher inverse against direct inversion; saliencies and the update against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime.compress.training.pruners import fisher as fisher_module
from sparse_runtime.compress.training.pruners.fisher import (
    FisherInverse,
    flat_order,
    matrix_order,
    matrix_saliency,
)
from sparse_runtime.spec import Structure

DAMP = 1e-2


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def direct_fisher(gradients: Tensor, block: int) -> Tensor:
    """damp * I + mean of g g^T, only its blocks on the diagonal, [blocks, block, block]."""
    count, size = gradients.shape
    padded = torch.zeros(count, -(-size // block) * block, dtype=torch.float64)
    padded[:, :size] = gradients
    g = padded.view(count, -1, block)
    eye = DAMP * torch.eye(block, dtype=torch.float64)
    return eye + torch.einsum("nbi,nbj->bij", g, g) / count


def made_of(gradients: Tensor, block: int, at_once: int) -> FisherInverse:
    inverse = FisherInverse(gradients.shape[1], block=block, damp=DAMP, dtype=torch.float64)
    for part in gradients.split(at_once):
        inverse.add(part)
    return inverse


def woodbury(gradients: Tensor, block: int, damp: float) -> Tensor:
    """The paper's recursion, a block: F^-1 <- F^-1 - F^-1 g (F^-1 g)^T / (m + g^T F^-1 g)."""
    count, size = gradients.shape
    inverse = (torch.eye(block, dtype=torch.float64) / damp).repeat(-(-size // block), 1, 1)
    for gradient in gradients:
        for i, part in enumerate(gradient.split(block)):
            g = torch.zeros(block, dtype=torch.float64)
            g[: len(part)] = part
            turned = inverse[i] @ g
            inverse[i] -= torch.outer(turned, turned) / (count + g @ turned)
    return inverse


# 12 weights in whole blocks of 4; 13 with a last block of one; one block; blocks of 1.
@pytest.mark.parametrize(("size", "block"), [(12, 4), (13, 4), (7, 7), (5, 1)])
@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_inverse_is_direct_and_that_of_rank_one_updates(
    size: int, block: int, at_once: int
) -> None:
    gradients = normal(10, size, seed=0)
    found = made_of(gradients, block, at_once).inverse
    torch.testing.assert_close(found, torch.linalg.inv(direct_fisher(gradients, block)))
    torch.testing.assert_close(found, woodbury(gradients, block, DAMP))


def test_without_gradients_it_is_the_damping() -> None:
    inverse = FisherInverse(3, block=2, damp=0.5)
    assert torch.equal(inverse.inverse, 2 * torch.eye(2).repeat(2, 1, 1))


def test_single_precision_holds_at_the_papers_damping() -> None:
    gradients = normal(64, 50, seed=1) * 1e-3
    found = FisherInverse(50, block=50, damp=1e-7)
    exact = FisherInverse(50, block=50, damp=1e-7, dtype=torch.float64)
    for inverse in (found, exact):
        for part in gradients.split(8):
            inverse.add(part)
    weight = normal(50, seed=2)
    torch.testing.assert_close(
        found.saliency(weight).double(), exact.saliency(weight), rtol=1e-3, atol=0
    )


def rise(fisher: Tensor, change: Tensor) -> float:
    """1/2 d^T F d over the blocks [blocks, block]."""
    return float(0.5 * torch.einsum("bi,bij,bj->", change, fisher, change))


def least_rise(fisher: Tensor, weight: Tensor, gone: Tensor) -> tuple[float, Tensor]:
    """Minimum under d_Q = -w_Q from the free weights' own normal equations, one block."""
    free = ~gone
    change = torch.where(gone, -weight, 0.0)
    if free.any():
        pull = fisher[free][:, gone] @ change[gone]
        change[free] = -torch.linalg.solve(fisher[free][:, free], pull)
    return float(0.5 * change @ fisher @ change), change


def test_saliency_is_the_least_rise_without_one_weight() -> None:
    gradients, weight = normal(9, 5, seed=3), normal(5, seed=4)
    fisher = direct_fisher(gradients, 5)[0]
    found = made_of(gradients, 5, 1).saliency(weight)
    for i in range(5):
        gone = torch.arange(5) == i
        assert found[i].item() == pytest.approx(least_rise(fisher, weight, gone)[0], rel=1e-9)


def test_group_saliency_is_the_least_rise_without_the_group() -> None:
    # Two Fisher blocks of 6 hold two groups of 3 each.
    gradients, weight = normal(20, 12, seed=5), normal(12, seed=6)
    fisher = direct_fisher(gradients, 6)
    found = made_of(gradients, 6, 4).group_saliency(weight, 3)
    for i in range(4):
        block = i // 2
        gone = (torch.arange(6) // 3) == i % 2
        expected, _ = least_rise(fisher[block], weight.view(2, 6)[block], gone)
        assert found[i].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("solved_together", [1, 4096])
def test_update_minimises_the_model_under_the_constraint(
    solved_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 11 weights: blocks of 4, 4 and 3; the second loses everything, the third nothing.
    monkeypatch.setattr(fisher_module, "_SOLVED_TOGETHER", solved_together)
    gradients, weight = normal(15, 11, seed=7), normal(11, seed=8)
    keep = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    inverse = made_of(gradients, 4, 5)
    moved = inverse.prune(weight, keep)
    assert torch.equal(moved[~keep], torch.zeros(6, dtype=torch.float64))
    assert not moved.signbit()[~keep].any()
    fisher = direct_fisher(gradients, 4)
    padded = torch.zeros(3, 4, dtype=torch.float64)
    padded.view(-1)[:11] = moved - weight
    for block in range(3):
        part = slice(4 * block, min(4 * block + 4, 11))
        size = part.stop - part.start
        _, change = least_rise(fisher[block, :size, :size], weight[part], ~keep[part])
        torch.testing.assert_close(padded[block, :size], change)
    # Any other change that zeroes the same weights costs more.
    best = rise(fisher, padded)
    other = padded.clone()
    other.view(-1)[0] += 1e-3
    assert rise(fisher, other) > best
    assert best < rise(
        fisher, torch.where(keep.new_zeros(12).view(3, 4), padded, -_pad(weight * ~keep))
    )


def _pad(flat: Tensor) -> Tensor:
    padded = torch.zeros(12, dtype=torch.float64)
    padded[: len(flat)] = flat
    return padded.view(3, 4)


# Whole blocks; and edges where the last block of rows and of columns is cut.
@pytest.mark.parametrize("shape", [(4, 8), (5, 9)])
def test_block_order_and_saliency_of_matrices(shape: tuple[int, int]) -> None:
    structure = Structure.parse("block:2x4")
    weight = normal(*shape, seed=9)
    flat = flat_order(weight, structure)
    assert torch.equal(matrix_order(flat, structure, shape), weight)
    assert torch.equal(flat[:8], weight[:2, :4].flatten())
    gradients = torch.stack([flat_order(normal(*shape, seed=s), structure) for s in range(30, 50)])
    fisher = made_of(gradients, 8, 20)
    scores = matrix_saliency(weight, structure, fisher)
    expected = fisher.group_saliency(flat, 8)
    blocks = flat_order(scores, structure).view(-1, 8)
    torch.testing.assert_close(blocks.sum(1), expected)
    assert (blocks[:, 1:] == 0).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="damp above"):
        FisherInverse(4, block=2, damp=0.0)
    inverse = FisherInverse(6, block=3, damp=1.0)
    with pytest.raises(ValueError, match=r"expected \[count, 6\]"):
        inverse.add(torch.zeros(6))
    with pytest.raises(ValueError, match="diverged"):
        inverse.add(torch.full((1, 6), torch.nan))
    with pytest.raises(ValueError, match="multiple of 2"):
        inverse.group_saliency(torch.zeros(6), 2)
    assert inverse.inverse.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="taken already"):
        inverse.add(torch.zeros(1, 6))
