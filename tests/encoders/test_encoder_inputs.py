"""Inputs that are refused, and the edges of those that run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime import SparseModel

IDS = torch.arange(4, 10).view(2, 3)


@pytest.fixture
def build(make_reference: Any, make_packed: Any) -> Any:
    def build(family: str = "bert", task: str = "Model", **changes: Any) -> SparseModel:
        return SparseModel.from_packed(make_packed(make_reference(family, task, **changes)))

    return build


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"input_ids": [[4, 5]]}, TypeError, "input_ids: expected an int64 or int32 tensor"),
        ({"input_ids": IDS.float()}, TypeError, "got torch.float32"),
        ({"input_ids": IDS[0]}, ValueError, r"expected \[batch, sequence\], got shape \[3\]"),
        ({"input_ids": IDS.unsqueeze(0)}, ValueError, r"got shape \[1, 2, 3\]"),
        ({"input_ids": IDS + 52}, ValueError, "input_ids: 61 is out of range"),
        ({"input_ids": IDS - 5}, ValueError, "input_ids: -1 is out of range"),
        ({"attention_mask": IDS[:, :2] * 0}, ValueError, r"attention_mask: expected shape \[2, 3"),
        ({"attention_mask": torch.ones(2, 1, 3, 3)}, ValueError, "pairs of tokens"),
        ({"attention_mask": IDS}, ValueError, "1 for real tokens and 0 for padding"),
        ({"attention_mask": [[1]]}, TypeError, "attention_mask: expected a tensor, got list"),
        ({"token_type_ids": IDS}, ValueError, "token_type_ids: 9 is out of range.*3 rows"),
        ({"token_type_ids": IDS[:1]}, ValueError, r"token_type_ids: expected shape \[2, 3\]"),
        ({"position_ids": IDS[0]}, ValueError, r"position_ids: expected shape \[2, 3\]"),
        ({"position_ids": IDS + 80}, ValueError, "position_ids: 89 is out of range"),
        ({"attention_mask": IDS[:1]}, ValueError, r"like input_ids, got \[1, 3\]$"),
        ({"position_ids": [[0, 1, 2]]}, TypeError, "position_ids: expected an int64"),
        ({"position_ids": IDS.float()}, TypeError, "position_ids: expected an int64"),
    ],
)
def test_refused(build: Any, inputs: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()(**{"input_ids": IDS, **inputs})


@pytest.mark.parametrize(("family", "longest"), [("bert", 80), ("roberta", 78), ("mpnet", 78)])
def test_longest_sequence(build: Any, family: str, longest: int) -> None:
    # families that count after the padding id lose the rows up to it
    model = build(family)
    assert model.max_length == longest
    ids = torch.full((1, longest), 5)
    assert model(ids).last_hidden_state.shape == (1, longest, 32)
    with pytest.raises(ValueError, match=f"up to {longest} tokens run, truncate"):
        model(torch.full((1, longest + 1), 5))


def test_masked_numbers_are_never_read(build: Any) -> None:
    ids, mask = IDS.clone(), torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = build()(ids, mask).last_hidden_state
    ids[0, 2] = 10**6
    assert torch.equal(build()(ids, mask).last_hidden_state, expected)


@pytest.mark.parametrize("family", ["bert", "mpnet"])  # with and without an attention bias
def test_a_fully_masked_row_is_zeros(build: Any, family: str) -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1]])
    ids = torch.cat([IDS, IDS[:1]])
    model = build(family)
    states = model(ids, mask, output_hidden_states=True).hidden_states
    alone = model(ids[[0, 2]], output_hidden_states=True).hidden_states
    assert len(states) == 3
    for state, other in zip(states, alone, strict=True):
        assert not state[1].any()
        assert (state[[0, 2]] - other).abs().max().item() < 1e-6


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("task", ["Model", "ForTokenClassification", "ForQuestionAnswering"])
def test_empty_batches(build: Any, shape: tuple[int, int], task: str) -> None:
    output = build(task=task)(torch.zeros(shape, dtype=torch.int64), output_hidden_states=True)
    assert output[0].shape[:2] == shape
    assert [state.shape for state in output.hidden_states] == [(*shape, 32)] * 3


def test_an_empty_batch_has_no_sentence_to_classify(build: Any) -> None:
    model = build(task="ForSequenceClassification")
    assert model(torch.zeros(0, 4, dtype=torch.int64)).logits.shape == (0, 5)
    with pytest.raises(ValueError, match="reads the first token"):
        model(torch.zeros(2, 0, dtype=torch.int64))


@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet"])
def test_a_masked_first_token_cannot_be_classified(
    build: Any, family: str, mask: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="pad on the right"):
        build(family, "ForSequenceClassification")(IDS, torch.tensor(mask))


def test_a_masked_first_token_leaves_no_pooler_output(build: Any) -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    output = build()(IDS, mask)
    assert output.pooler_output is None
    assert output.last_hidden_state[0, 1:].all()
    assert build()(IDS).pooler_output.shape == (2, 32)


def test_rows_do_not_see_each_other(build: Any) -> None:
    model = build()
    batch = torch.randint(4, 61, (5, 12), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(12) < torch.tensor([12, 1, 7, 12, 3]).unsqueeze(1)).long()
    together: Tensor = model(batch, mask).last_hidden_state
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(batch[row : row + 1, :length]).last_hidden_state
        assert (together[row, :length] - alone[0]).abs().max().item() < 1e-5
