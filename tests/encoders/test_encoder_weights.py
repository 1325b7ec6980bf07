"""Names and shapes of a packed model's tensors: what is needed, tied, left out or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_runtime import SparseModel
from sparse_runtime.store import PackedLinear, PackedModel

IDS = torch.arange(4, 10).view(2, 3)


def rename(packed: PackedModel, old: str, new: str) -> None:
    """Replace a beginning of every name."""
    for group in (packed.linears, packed.tensors):
        for name in [name for name in group if name.startswith(old)]:
            group[new + name.removeprefix(old)] = group.pop(name)


@pytest.mark.parametrize("task", ["ForSequenceClassification", "ForMaskedLM"])
def test_a_base_checkpoint_has_no_head(task: str, make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    packed.config["architectures"] = [f"Bert{task}"]
    missing = "classifier.weight, classifier.bias"
    if task == "ForMaskedLM":
        missing = "cls.predictions.transform.LayerNorm.weight.*cls.predictions.bias"
    with pytest.raises(ValueError, match=f"missing: {missing}.*never made up"):
        SparseModel.from_packed(packed)


def test_every_missing_name_is_listed(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "ForTokenClassification"))
    del packed.linears["bert.encoder.layer.1.output.dense"]
    del packed.tensors["bert.encoder.layer.0.output.LayerNorm.bias"]
    packed.linears["bert.encoder.layer.0.output.dense"].bias = None
    with pytest.raises(ValueError) as error:
        SparseModel.from_packed(packed)
    for name in (
        "1.output.dense (a packed linear",
        "0.output.LayerNorm.bias",
        "0.output.dense.bias",
    ):
        assert f"bert.encoder.layer.{name}" in str(error.value)


def test_layers_that_config_json_makes_up_are_not_counted_out(
    make_reference: Any, make_packed: Any
) -> None:
    packed = make_packed(make_reference("bert", "ForTokenClassification"))
    packed.config["num_hidden_layers"] = 10**9
    with pytest.raises(ValueError, match=r"missing: .*bert\.encoder\.layer\.2\.") as error:
        SparseModel.from_packed(packed)
    assert len(str(error.value)) < 2000


def test_a_weight_without_axes_is_named(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    packed.tensors["pooler.dense.weight"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"pooler\.dense\.weight expected \[32, 32\], got \[\]"):
        SparseModel.from_packed(packed)


def test_wrong_shapes_are_named(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "ForTokenClassification"))
    packed.config["num_labels"] = 4
    packed.config.pop("id2label"), packed.config.pop("label2id")
    packed.config["intermediate_size"] = 40
    with pytest.raises(ValueError) as error:
        SparseModel.from_packed(packed)
    assert "classifier.weight expected [4, 32], got [5, 32]" in str(error.value)
    assert "layer.1.intermediate.dense expected [40, 32], got [48, 32]" in str(error.value)


@pytest.mark.parametrize("name", ["bert.encoder.layer.2.output.LayerNorm.bias", "adapter.weight"])
def test_unknown_tensors_are_refused(name: str, make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "ForTokenClassification"))
    packed.tensors[name] = torch.zeros(32)  # a third layer's, or of nothing known
    with pytest.raises(ValueError, match=f"of no known part: {name}"):
        SparseModel.from_packed(packed)


def test_known_tensors_of_other_tasks_are_left_unused(
    make_reference: Any, make_packed: Any
) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    expected = SparseModel.from_packed(packed)(IDS)
    rename(packed, "", "bert.")
    extra = ["cls.predictions.bias", "classifier.weight", "bert.embeddings.position_ids"]
    packed.tensors |= {name: torch.zeros(3) for name in extra}
    model = SparseModel.from_packed(packed)
    assert model.unused_tensors == tuple(sorted(extra))
    got = model(IDS)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(got.pooler_output, expected.pooler_output)


def test_a_missing_pooler_is_no_error_in_a_base_model(
    make_reference: Any, make_packed: Any
) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    del packed.tensors["pooler.dense.weight"], packed.tensors["pooler.dense.bias"]
    assert SparseModel.from_packed(packed)(IDS).pooler_output is None


def test_half_a_pooler_is_an_error(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    del packed.tensors["pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"missing: pooler\.dense\.bias"):
        SparseModel.from_packed(packed)


MASKED = {
    "bert": "cls.predictions.decoder",
    "roberta": "lm_head.decoder",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
    "mpnet": "lm_head.decoder",
}


@pytest.mark.parametrize("family", sorted(MASKED))
def test_the_decoder_is_its_own_where_it_is_stored(
    family: str, make_reference: Any, make_packed: Any
) -> None:
    theirs = make_reference(family, "ForMaskedLM", tie_word_embeddings=False)
    packed = make_packed(theirs)
    assert f"{MASKED[family]}.weight" in packed.tensors
    with torch.no_grad():
        expected = theirs(IDS).logits
    assert (SparseModel.from_packed(packed)(IDS).logits - expected).abs().max().item() < 1e-5
    del packed.tensors[f"{MASKED[family]}.weight"]
    with pytest.raises(ValueError, match=f"missing: {MASKED[family]}.weight"):
        SparseModel.from_packed(packed)


def test_aliases_lead_to_the_stored_tensor(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "ForMaskedLM"))
    expected = SparseModel.from_packed(packed)(IDS).logits
    word, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    packed.tensors[decoder] = packed.tensors.pop(word)
    packed.aliases[word] = decoder
    assert torch.equal(SparseModel.from_packed(packed)(IDS).logits, expected)


def test_layers_outside_of_the_stack_may_be_packed(make_reference: Any, make_packed: Any) -> None:
    from sparse_runtime.formats import pack
    from sparse_runtime.spec import LinearSpec, Structure, ValueSpec

    packed = make_packed(make_reference("electra", "ForSequenceClassification"))
    expected = SparseModel.from_packed(packed)(IDS).logits
    for name in ("classifier.dense", "electra.embeddings_project"):
        weight = packed.tensors.pop(f"{name}.weight")
        spec = LinearSpec(tuple(weight.shape), Structure.parse("dense"), ValueSpec.parse("fp32"))
        bias = packed.tensors.pop(f"{name}.bias")
        packed.linears[name] = PackedLinear(pack(weight, spec), bias)
    model = SparseModel.from_packed(packed)
    assert (model(IDS).logits - expected).abs().max().item() < 1e-5
    assert model(IDS[:0]).logits.shape == (0, 5)
