"""Masks keep the highest scores with exact counts, as projection does, alone or ranked globally."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_runtime.compress import Pattern, global_masks, sparsity
from sparse_runtime.formats import project
from sparse_runtime.formats.block import to_blocks

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 33))
SEEDS = st.integers(0, 2**32)
# Every kind; blocks that divide neither side of most shapes.
PATTERNS = st.sampled_from(
    ["2:4", "1:4", "3:5", "unstructured@0.0", "unstructured@0.9", "block:1x4@0.8", "block:3x2@0.5"]
)


def coarse(shape: tuple[int, int], seed: int) -> Tensor:
    """Whole numbers from -4 to 4, so that there are ties of every kind."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


@given(SHAPES, PATTERNS, SEEDS)
def test_masks_of_magnitudes_are_those_of_projection(
    shape: tuple[int, int], text: str, seed: int
) -> None:
    weight, pattern = coarse(shape, seed), Pattern.parse(text)
    mask = pattern.mask(weight.abs())
    expected = project(weight, pattern.structure, pattern.sparsity)
    assert torch.equal(torch.where(mask, weight, 0.0), expected)


def test_counts_and_ties_are_exact() -> None:
    # Four equal scores of which two stay: the first two.
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    first = torch.tensor([[True, True, False, False]])
    assert torch.equal(Pattern.parse("2:4").mask(scores), first)
    assert torch.equal(Pattern.parse("unstructured@0.5").mask(scores), first)
    # round(0.9 * 7) = 6 of 7 are dropped.
    assert Pattern.parse("unstructured@0.9").mask(torch.arange(7.0)[None]).sum() == 1


def test_negative_scores_rank_below_zero_and_padding_below_them() -> None:
    # 5 columns: the last group of 4 has one score and three places that do not exist.
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -9.0]])
    expected = torch.tensor([[True, True, False, False, True]])
    assert torch.equal(Pattern.parse("2:4").mask(scores), expected)


def test_blocks_add_up_scores_or_take_their_norm() -> None:
    # Block [3, -3] has the larger norm, block [1, 1] the larger sum.
    scores = torch.tensor([[3.0, -3.0, 1.0, 1.0]])
    pattern = Pattern.parse("block:1x2@0.5")
    assert pattern.mask(scores).tolist() == [[True, True, False, False]]
    assert pattern.mask(scores, reduce="sum").tolist() == [[False, False, True, True]]


@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.1, 0.3, 0.49, 0.5]))
def test_the_way_to_two_of_four_drops_only_what_it_drops(
    shape: tuple[int, int], seed: int, share: float
) -> None:
    scores, whole = coarse(shape, seed), Pattern.parse("2:4")
    mask, final = whole.at(share).mask(scores), whole.mask(scores)
    assert bool((mask | ~final).all())
    candidates = int((~final).sum())
    assert int((~mask).sum()) == candidates - round((1 - share / 0.5) * candidates)
    dropped = scores[~mask]
    if dropped.numel() and int((mask & ~final).sum()):
        assert dropped.max() <= scores[mask & ~final].min()


def test_a_pattern_says_its_sparsity() -> None:
    pattern = Pattern.parse("2:4")
    assert (str(pattern), pattern.final_sparsity) == ("2:4", 0.5)
    assert (str(pattern.at(0.25)), pattern.at(0.25).final_sparsity) == ("2:4@0.25", 0.25)
    assert str(Pattern.parse("block:1x4@0.8")) == "block:1x4@0.8"
    assert sparsity(pattern.mask(torch.rand(8, 16))) == 0.5


@pytest.mark.parametrize(
    ("text", "share", "match"),
    [
        ("2:4", 0.6, "at most sparsity 0.5, got 0.6"),
        ("unstructured@0.5", 1.0, "from 0 to below 1, got 1.0"),
        ("block:4x1@0.5", -0.1, "from 0 to below 1, got -0.1"),
    ],
)
def test_impossible_sparsities_are_refused(text: str, share: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Pattern.parse(text).at(share)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    pattern = Pattern.parse("unstructured@0.5")
    with pytest.raises(ValueError, match="finite numbers"):
        pattern.mask(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match="2-D float matrix"):
        pattern.mask(torch.ones(4))


def test_global_ranking_takes_more_from_weaker_matrices_down_to_the_floor() -> None:
    torch.manual_seed(0)
    scores = {"strong": torch.rand(10, 10) + 10, "weak": torch.rand(5, 20)}
    masks = global_masks(scores, Pattern.parse("unstructured@0.4"), floor=0.1)
    assert sum(int(mask.sum()) for mask in masks.values()) == 120
    assert (sparsity(masks["strong"]), sparsity(masks["weak"])) == (0.0, 0.8)
    # Half of all is more than the weak matrix may lose: its floor of 10 stays.
    masks = global_masks(scores, Pattern.parse("unstructured@0.5"), floor=0.1)
    assert (int(masks["strong"].sum()), int(masks["weak"].sum())) == (90, 10)
    kept = scores["weak"][masks["weak"]].min()
    assert kept >= scores["weak"][~masks["weak"]].max()


def test_global_blocks_are_whole_and_counted_over_all_matrices() -> None:
    torch.manual_seed(0)
    pattern = Pattern.parse("block:2x2@0.75")
    scores = {"a": torch.rand(8, 8), "b": torch.rand(4, 6)}
    masks = global_masks(scores, pattern)
    whole = [to_blocks(mask, pattern.structure) for mask in masks.values()]
    assert all(bool((blocks.all(-1) == blocks.any(-1)).all()) for blocks in whole)
    # 16 + 6 blocks, of which round(0.75 * 22) = 16 go.
    assert sum(int(blocks.any(-1).sum()) for blocks in whole) == 6


def test_global_two_of_four_ends_in_two_of_four_everywhere() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(8, 8) + 5, "b": torch.rand(4, 8)}
    masks = global_masks(scores, Pattern.parse("2:4"))
    assert all(bool((mask.view(-1, 4).sum(1) == 2).all()) for mask in masks.values())
    halfway = global_masks(scores, Pattern.parse("2:4").at(0.25))
    # 48 weights are dropped in the end, 24 now, and b has the lower scores: its 16 go first.
    assert [int((~mask).sum()) for mask in halfway.values()] == [8, 16]


def test_a_floor_of_all_that_the_pattern_keeps_fits_it() -> None:
    # 1 % of 64 x 64 are 40.96: rounded up, two such matrices would keep more than 99 % leave.
    scores = {"a": torch.rand(64, 64), "b": torch.rand(64, 64) + 1, "c": torch.rand(1, 5)}
    masks = global_masks(scores, Pattern.parse("unstructured@0.99"), floor=0.01)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert kept == {"a": 40, "b": 82 - 41, "c": 1}


def test_a_floor_above_the_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps 1 of 10, but floor=0.5 alone keeps 5"):
        global_masks({"a": torch.rand(1, 10)}, Pattern.parse("unstructured@0.9"), floor=0.5)
    with pytest.raises(ValueError, match="expected at least one matrix"):
        global_masks({}, Pattern.parse("2:4"))
