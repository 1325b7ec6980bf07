"""SparseML's quantization-aware training (oBERT): integers, tables and attention, exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, QuantWrapper
from transformers import BertForMaskedLM, BertForSequenceClassification

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.spec import QuantizedAttention
from sparse_runtime.store import load
from sparse_runtime.testing.exporters import sparseml_qat
from sparse_runtime.tools.convert import convert

LAYER = "bert.encoder.layer.0.attention.self.query"
TABLE = "bert.embeddings.word_embeddings"
MATMUL = "bert.encoder.layer.1.attention.self.context_layer_matmul"
STUB = "quant.activation_post_process"

FORMS = ["obert", "outputs", "signed"]


@pytest.fixture(scope="module")
def state(sparseml: dict[str, BertForSequenceClassification]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sparseml["obert"].state_dict().items()}


@pytest.mark.parametrize("form", FORMS)
def test_integers_and_tables_are_those_of_the_training(
    form: str, sparseml: dict[str, BertForSequenceClassification], write_qat: Callable[..., Path]
) -> None:
    model, dtype = sparseml[form], "int8" if form == "signed" else "uint8"
    checkpoint = open_checkpoint(write_qat(model.state_dict()))
    wrapped = {n: m for n, m in model.named_modules() if isinstance(m, QuantWrapper)}
    assert set(checkpoint.linears) == set(wrapped)
    assert len(wrapped) == 14  # pooler and classifier too
    for name, wrapper in wrapped.items():
        linear, values = wrapper.module, checkpoint.linears[name].load()
        found = checkpoint.linears[name].activations
        assert torch.equal(values.weight * values.scales, linear.weight_fake_quant(linear.weight))
        assert torch.equal(checkpoint.tensors[f"{name}.bias"], linear.bias)
        stub = wrapper.quant.activation_post_process
        assert found is not None
        assert (found.dtype, found.scale, found.zero_point) == (
            dtype,
            stub.scale.item(),
            stub.zero_point.item(),
        )
        outputs = checkpoint.linears[name].outputs
        assert (outputs is not None) == hasattr(linear, "activation_post_process")
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            table = module(torch.arange(module.num_embeddings))
            assert torch.equal(checkpoint.tensors[f"{name}.weight"], table)
            assert not torch.equal(table, module.weight)


@pytest.mark.parametrize("form", FORMS)
def test_each_stub_of_attention_has_its_role(
    form: str, sparseml: dict[str, BertForSequenceClassification], write_qat: Callable[..., Path]
) -> None:
    model, dtype = sparseml[form], "int8" if form == "signed" else "uint8"
    checkpoint = open_checkpoint(write_qat(model.state_dict()))
    assert set(checkpoint.attention) == {"bert.encoder.layer.0", "bert.encoder.layer.1"}
    for name, attention in checkpoint.attention.items():
        module = model.get_submodule(f"{name}.attention.self")
        scores, context = module.attention_scores_matmul, module.context_layer_matmul
        stubs = {
            "query": scores.input_quant_stubs[0],
            "key": scores.input_quant_stubs[1],
            "scores": scores.output_quant_stubs[0],
            "probabilities": context.input_quant_stubs[0],
            "value": context.input_quant_stubs[1],
            "context": context.output_quant_stubs[0],
        }
        assert set(attention.parts()) == set(stubs)
        for role, spec in attention.parts().items():
            fake = stubs[role].activation_post_process
            assert (spec.dtype, spec.scale, spec.zero_point) == (
                dtype,
                fake.scale.item(),
                fake.zero_point.item(),
            )
    assert f"attention: key static {dtype} in 2 modules" in checkpoint.steps


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_model_computes_what_the_fake_quantized_one_does(
    form: str,
    backend: str,
    plain: BertForSequenceClassification,
    sparseml: dict[str, BertForSequenceClassification],
    write_qat: Callable[..., Path],
    texts: Callable[[int], tuple[Tensor, Tensor]],
    tmp_path: Path,
) -> None:
    model, exact = sparseml[form], 0
    convert(write_qat(model.state_dict()), tmp_path / "packed", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed", backend=backend)
    for seed in range(7, 11):
        ids, mask = texts(seed)
        keep = mask.unsqueeze(2)
        expected = model.bert(ids, mask).last_hidden_state * keep
        effect = (plain.bert(ids, mask).last_hidden_state * keep - expected).abs()
        states = packed(ids, mask, output_hidden_states=True).hidden_states
        errors = (states[-1] - expected).abs()
        # A few roundings of float32 numbers of size 1, in a text where no quantizer differs.
        exact += int((errors.amax((1, 2)) <= 2e-6).sum())
        # A value next to a tie that a quantizer puts on its other side moves what depends on it.
        assert errors.mean() <= 0.05 * effect.mean()
    assert exact >= 24  # of 32 texts


@torch.no_grad()
def test_quantizers_that_are_switched_off_are_not_there(
    sparseml: dict[str, BertForSequenceClassification], write_qat: Callable[..., Path]
) -> None:
    model = copy.deepcopy(sparseml["outputs"])
    query = model.get_submodule(LAYER)
    for group in (query.module.weight_fake_quant, query.quant.activation_post_process):
        group.disable_fake_quant()
    query.module.activation_post_process.disable_fake_quant()
    model.get_submodule(TABLE).weight_fake_quant.disable_fake_quant()
    model.get_submodule(MATMUL).output_quant_stubs[0].activation_post_process.disable_fake_quant()
    key = model.get_submodule(LAYER.replace("query", "key"))
    key.quant.activation_post_process.disable_fake_quant()  # weights alone
    checkpoint = open_checkpoint(write_qat(model.state_dict()))
    assert LAYER not in checkpoint.linears
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], query.module.weight)
    assert checkpoint.linears[LAYER.replace("query", "key")].activations is None
    table = model.get_submodule(TABLE)
    assert torch.equal(checkpoint.tensors[f"{TABLE}.weight"], table(torch.arange(50)))
    assert checkpoint.attention["bert.encoder.layer.1"].context is None
    assert checkpoint.attention["bert.encoder.layer.0"].context is not None
    assert "no quantizer switched on: floats kept in 1 modules" in checkpoint.steps


def test_narrow_weights_are_told_from_what_the_observer_saw(
    sparseml: dict[str, BertForSequenceClassification], write_qat: Callable[..., Path]
) -> None:
    seen = torch.linspace(-1, 1, 1024).reshape(32, 32)
    weight, smallest = seen * 1.2, {}  # trained further after the observers were frozen
    for low in (-128, -127):
        fake = FakeQuantize(
            quant_min=low, quant_max=127, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
        )
        fake(seen)
        fake.disable_observer()
        changes = {
            f"{LAYER}.module.weight_fake_quant.{name}": tensor
            for name, tensor in fake.state_dict().items()
        }
        changes[f"{LAYER}.module.weight"] = weight
        source = write_qat(sparseml["obert"].state_dict() | changes)
        values = open_checkpoint(source).linears[LAYER].load()
        assert torch.equal(values.weight * values.scales, fake(weight))
        smallest[low] = int(values.weight.min())
    assert smallest == {-128: -128, -127: -127}


@pytest.mark.parametrize(
    ("group", "option", "changes", "answers"),
    [
        (
            f"{LAYER}.module.weight_fake_quant",
            "weight_range",
            {"activation_post_process.max_val": torch.tensor(9.0)},
            {"full": -128, "narrow": -127},
        ),
        (
            f"{LAYER}.{STUB}",
            "activation_range",
            {
                "activation_post_process.min_val": torch.tensor(torch.inf),
                "activation_post_process.max_val": torch.tensor(-torch.inf),
                "zero_point": torch.tensor([77]),
            },
            {"uint8": "uint8", "int8": "int8"},
        ),
    ],
)
def test_a_range_that_does_not_show_is_asked_for(
    group: str,
    option: str,
    changes: dict[str, Tensor],
    answers: dict[str, object],
    state: dict[str, Tensor],
    write_qat: Callable[..., Path],
) -> None:
    weight = {f"{LAYER}.module.weight": torch.full((32, 32), -100.0)}  # below any range
    tensors = state | weight | {f"{group}.{name}": tensor for name, tensor in changes.items()}
    source = write_qat(tensors)
    with pytest.raises(CheckpointError, match=f"--finalise {option}=") as caught:
        open_checkpoint(source)
    assert group in str(caught.value)
    for answer, expected in answers.items():
        linear = open_checkpoint(source, finalise={option: answer}).linears[LAYER]
        assert linear.activations is not None
        found = int(linear.load().weight.min()), linear.activations.dtype
        assert expected in found
    with pytest.raises(CheckpointError, match="expected one of"):
        open_checkpoint(source, finalise={option: "wide"})


@pytest.mark.parametrize(
    ("zero_point", "dtype"), [(-1, "int8"), (-128, "int8"), (128, "uint8"), (255, "uint8")]
)
def test_a_zero_point_that_only_one_type_has_decides(
    zero_point: int, dtype: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    nothing = {"min_val": torch.tensor([]), "max_val": torch.tensor([])}  # as old releases of torch
    changes = {
        f"{LAYER}.{STUB}.activation_post_process.{name}": tensor for name, tensor in nothing.items()
    }
    changes[f"{LAYER}.{STUB}.zero_point"] = torch.tensor([zero_point])
    checkpoint = open_checkpoint(write_qat(state | changes))
    assert checkpoint.linears[LAYER].activations is not None
    assert checkpoint.linears[LAYER].activations.dtype == dtype


def test_a_tied_head_keeps_the_floats_that_its_table_is_quantized_from(
    bert: BertForMaskedLM, write_qat: Callable[..., Path]
) -> None:
    # torch quantizes the table where it is looked up; the head multiplies the weight itself.
    model = copy.deepcopy(bert)
    table = model.bert.embeddings.word_embeddings
    fake = sparseml_qat.quantizer(torch.quint8, symmetric=False)
    expected = fake(table.weight).detach()
    quantizers = {
        f"{TABLE}.weight_fake_quant.{name}": tensor for name, tensor in fake.state_dict().items()
    }
    checkpoint = open_checkpoint(write_qat(model.state_dict() | quantizers))
    assert torch.equal(checkpoint.tensors[f"{TABLE}.weight"], expected)
    assert torch.equal(checkpoint.tensors["cls.predictions.decoder.weight"], table.weight)


def test_attention_reaches_the_packed_model(
    state: dict[str, Tensor], write_qat: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_qat(state)
    convert(source, tmp_path / "packed", progress=False)
    attention = load(tmp_path / "packed").attention
    assert attention == open_checkpoint(source).attention
    assert all(isinstance(layer, QuantizedAttention) for layer in attention.values())
