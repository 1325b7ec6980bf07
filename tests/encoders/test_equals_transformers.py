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


def last_states(family: str, make_reference: Any, make_packed: Any, **inputs: Tensor) -> Any:
    """(ours, theirs): last hidden states of the base model."""
    theirs = make_reference(family, "Model")
    ours = SparseModel.from_packed(make_packed(theirs))
    with torch.no_grad():
        return ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state


@pytest.mark.parametrize("kind", ["left", "hole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_anywhere(
    family: str, kind: str, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    batch = make_batch(make_reference(family, "Model").config.pad_token_id)
    if kind == "left":  # padding before the tokens: columns, or positions after padding
        batch = {name: ids.flip(1) for name, ids in batch.items()}
    else:  # a masked token amid the others, which keeps its position
        batch["attention_mask"][:, 2] = 0
    mine, other = last_states(family, make_reference, make_packed, **batch)
    real = batch["attention_mask"].bool()
    assert (mine - other)[real].abs().max().item() < LIMIT
    assert not mine[~real].any()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
@pytest.mark.parametrize("rows", [1, 3])
def test_own_position_ids(
    family: str, rows: int, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    batch = make_batch(make_reference(family, "Model").config.pad_token_id)
    # [1, columns] for all rows, or each row's own
    batch["position_ids"] = (torch.arange(9) * 3 + 11).expand(rows, 9)
    mine, other = last_states(family, make_reference, make_packed, **batch)
    real = batch["attention_mask"].bool()
    assert (mine - other)[real].abs().max().item() < LIMIT


def test_mpnet_bias_beyond_its_positions(make_reference: Any, make_packed: Any) -> None:
    # 100 columns, 78 positions: the caller's ids repeat, distances go on
    ids = torch.randint(4, 61, (1, 100), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": (torch.arange(100) % 70 + 2).unsqueeze(0)}
    mine, other = last_states("mpnet", make_reference, make_packed, **inputs)
    assert (mine - other).abs().max().item() < LIMIT


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_token_types_are_ignored_where_there_are_none(
    family: str, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    model = SparseModel.from_packed(make_packed(make_reference(family, "Model")))
    batch = make_batch(1)
    expected = model(**batch).last_hidden_state
    got = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"])).last_hidden_state
    assert torch.equal(got, expected)


def test_no_mask_int32_and_tuples(make_reference: Any, make_packed: Any, make_batch: Any) -> None:
    theirs = make_reference("bert", "Model")
    ours = SparseModel.from_packed(make_packed(theirs))
    ids = make_batch(0, batch=1)["input_ids"]
    with torch.no_grad():
        expected = theirs(ids, return_dict=False)
    got = ours(ids.int(), return_dict=False)
    assert isinstance(got, tuple) and len(got) == len(expected) == 2
    for mine, other in zip(got, expected, strict=True):
        assert (mine - other).abs().max().item() < LIMIT
    assert ours(ids, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
def test_mask_types(kind: torch.dtype, make_reference: Any, make_packed: Any, make_batch: Any):
    model = SparseModel.from_packed(make_packed(make_reference("bert", "Model")))
    batch = make_batch(0)
    expected = model(**batch).last_hidden_state
    batch["attention_mask"] = batch["attention_mask"].to(kind)
    assert torch.equal(model(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "relu", "silu", "gelu_python"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_activations(
    family: str, activation: str, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    key = "activation" if family == "distilbert" else "hidden_act"
    theirs = make_reference(family, "ForMaskedLM", **{key: activation})  # in layers and head
    ours = SparseModel.from_packed(make_packed(theirs))
    batch = make_batch(0)
    with torch.no_grad():
        check_equal(ours(**batch), theirs(**batch), batch["attention_mask"])


def test_electra_of_one_size_has_no_projection(
    make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    theirs = make_reference("electra", "ForMaskedLM", embedding_size=32)
    assert not hasattr(theirs.electra, "embeddings_project")
    batch = make_batch(0, types=2)
    with torch.no_grad():
        got = SparseModel.from_packed(make_packed(theirs))(**batch)
        check_equal(got, theirs(**batch), batch["attention_mask"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(
    dtype: torch.dtype, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    theirs = make_reference("bert", "ForSequenceClassification")
    packed, batch = make_packed(theirs), make_batch(0, types=3)
    exact = SparseModel.from_packed(packed)(**batch).logits
    logits = SparseModel.from_packed(packed, dtype=dtype)(**batch).logits
    with torch.no_grad():
        dense = theirs.to(dtype)(**batch).logits
    assert logits.dtype == dtype
    # at most the error that transformers makes in the same type, twice over
    limit = 2 * (dense.float() - exact).abs().max().item()
    assert (logits.float() - exact).abs().max().item() <= limit


def test_real_minilm_with_its_pooler(minilm: Any, make_packed: Any) -> None:
    from transformers import AutoModel, AutoTokenizer

    theirs = AutoModel.from_pretrained(minilm).eval()
    theirs.config.architectures = ["BertModel"]
    ours = SparseModel.from_packed(make_packed(theirs))
    long = "Sparse weights leave out most products. " * 20  # for attention on AMX tiles
    texts = ["A cat sat on the mat.", "Why?", long]
    batch = AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch, output_hidden_states=True)
    got = ours(**batch, output_hidden_states=True)
    assert len(got.hidden_states) == 7
    check_equal(got, expected, batch["attention_mask"])


@pytest.mark.parametrize("family", ["roberta", "camembert", "mpnet"])
def test_padding_ids_among_the_tokens_are_not_counted(
    family: str, make_reference: Any, make_packed: Any
) -> None:
    # nothing is masked, so tokens that look like padding run, all at the padding's position;
    # MPNet counts after 1 whatever its pad_token_id says
    theirs = make_reference(family, "Model", pad_token_id=5)
    pad = 1 if family == "mpnet" else 5
    ids = torch.tensor([[8, pad, 9, 6, pad, pad, 7]])
    mine, other = last_states(family, make_reference, make_packed, input_ids=ids)
    assert (mine - other).abs().max().item() < LIMIT
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
    got = SparseModel.from_packed(make_packed(theirs))(ids).last_hidden_state
    assert (got - expected).abs().max().item() < LIMIT


def test_mpnet_distances_share_the_last_bucket(make_reference: Any, make_packed: Any) -> None:
    # 300 columns: the farthest bucket holds every distance from 128 on
    theirs = make_reference("mpnet", "Model", max_position_embeddings=310)
    ids = torch.randint(4, 61, (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
    got = SparseModel.from_packed(make_packed(theirs))(ids).last_hidden_state
    assert (got - expected).abs().max().item() < LIMIT
