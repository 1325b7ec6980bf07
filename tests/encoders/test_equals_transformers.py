"""With dense FP32 weights every family and head gives what transformers gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime import SparseModel

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")
TASKS = (
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
)
BY_TOKEN = ("last_hidden_state", "logits", "start_logits", "end_logits")
LIMIT = 1e-5


def check_equal(ours: Any, theirs: Any, mask: Tensor) -> None:
    """Compare every field both outputs have; per-token fields on real tokens, else zeros."""
    assert [key for key in ours if key != "hidden_states"] == [
        key for key in theirs if key not in ("hidden_states", "attentions")
    ]
    real = mask.bool()
    for key, value in ours.items():
        values = value if key == "hidden_states" else (value,)
        others = theirs[key] if key == "hidden_states" else (theirs[key],)
        assert len(values) == len(others)
        for mine, other in zip(values, others, strict=True):
            assert mine.shape == other.shape
            if mine.shape[:2] == mask.shape and key != "pooler_output":
                assert not mine[~real].any()
                mine, other = mine[real], other[real]
            assert (mine - other).abs().max().item() < LIMIT


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head(
    family: str, task: str, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    theirs = make_reference(family, task)
    ours = SparseModel.from_packed(make_packed(theirs))
    types = getattr(theirs.config, "type_vocab_size", 1)
    batches = [
        make_batch(theirs.config.pad_token_id, types=types),  # ragged, padded on the right
        make_batch(theirs.config.pad_token_id, batch=1),  # one full row, default token types
        # 70 columns: distances beyond the exact buckets of MPNet's attention bias
        make_batch(theirs.config.pad_token_id, types=types, batch=2, columns=70),
    ]
    for batch in batches:
        with torch.no_grad():
            expected = theirs(**batch, output_hidden_states=True)
        got = ours(**batch, output_hidden_states=True)
        check_equal(got, expected, batch["attention_mask"])
