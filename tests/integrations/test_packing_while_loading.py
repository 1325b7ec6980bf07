"""Float checkpoints that are packed while transformers loads them."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import sparse_runtime as sr
from sparse_runtime.store import load


def layer_names(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, sr.Linear)}


def test_it_packs_what_convert_packs(make_packed: Any, run: Any, tmp_path: Path) -> None:
    packed = make_packed("Bert", "ForSequenceClassification")
    config = sr.SparseRuntimeConfig(structure="unstructured", prune="unstructured@0.6")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "float", quantization_config=config
    )
    converted = AutoModelForSequenceClassification.from_pretrained(packed)
    assert layer_names(model) == layer_names(converted) == set(load(packed).linears)
    assert torch.equal(run(model), run(converted))
    assert type(model.bert.pooler.dense) is torch.nn.Linear


@pytest.mark.parametrize(
    ("auto", "task", "arguments"),
    [
        # The decoder is tied; values without scales; a mask; a 2:4 projection.
        (AutoModelForMaskedLM, "ForMaskedLM", {"structure": "2:4", "values": "int8"}),
        (AutoModel, "Model", {"structure": "unstructured", "values": "bf16"}),
        (AutoModel, "Model", {"structure": "auto", "values": "int4", "scales": "tensor"}),
    ],
)
def test_it_saves_a_packed_directory(
    auto: Any, task: str, arguments: dict[str, str], make_checkpoint: Any, run: Any, tmp_path: Path
) -> None:
    source, saved = make_checkpoint("Bert", task), tmp_path / "saved"
    model = auto.from_pretrained(source, quantization_config=sr.SparseRuntimeConfig(**arguments))
    assert not model.hf_quantizer.is_trainable and not model.training
    model.save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "sparse_runtime"}
    made = config["sparse_runtime"]["provenance"]
    assert made["source"] == source.name and arguments.items() <= made["arguments"].items()
    again, info = auto.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(run(again), run(model))
    ours = sr.SparseModel.from_pretrained(saved)
    scale = float(run(model).abs().max())
    assert float((run(ours) - run(model)).abs().max()) < 0.02 * scale


def test_a_dictionary_does_as_well(make_checkpoint: Any) -> None:
    fields = {"quant_method": "sparse_runtime", "structure": "2:4"}
    model = AutoModel.from_pretrained(make_checkpoint(), quantization_config=fields)
    layer = model.encoder.layer[0].attention.self.query
    assert type(layer) is sr.Linear and str(layer.spec.structure) == "2:4"


def test_in_another_dtype(make_checkpoint: Any, run: Any) -> None:
    model = AutoModel.from_pretrained(
        make_checkpoint(), dtype=torch.bfloat16, quantization_config=sr.SparseRuntimeConfig()
    )
    layer = model.encoder.layer[0].output.dense
    assert (layer.bias.dtype, layer.values.dtype) == (torch.bfloat16, torch.int8)
    assert run(model).dtype == torch.bfloat16 and run(model).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": "int3"}, "values 'int3'"),
        ({"structure": "2:4", "prune": "unstructured@0.9"}, "prune"),
        ({"quant_method": "gptq"}, "quant_method 'gptq': expected 'sparse_runtime'"),
    ],
)
def test_arguments_are_checked_at_once(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sr.SparseRuntimeConfig(**arguments)
    with pytest.raises(TypeError, match=r"structure: expected a string .*, got None"):
        sr.SparseRuntimeConfig(structure=None)  # type: ignore[arg-type]


def test_the_configuration_prints_and_copies() -> None:
    config = sr.SparseRuntimeConfig(values="int8", prune="2:4")
    assert config.to_dict() == {"quant_method": "sparse_runtime", "values": "int8", "prune": "2:4"}
    assert type(config).from_dict(config.to_dict()).arguments == config.arguments
    assert copy.deepcopy(config).to_dict() == config.to_dict() and '"2:4"' in repr(config)
    with pytest.raises(TypeError, match="bits"):
        type(config).from_dict({"quant_method": "sparse_runtime", "bits": 8})


def test_a_model_without_an_encoder_stack(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPT2Model: expected linear layers in an encoder stack"):
        AutoModel.from_pretrained(tmp_path, quantization_config=sr.SparseRuntimeConfig())


def test_a_weight_that_cannot_be_packed(make_checkpoint: Any) -> None:
    source = make_checkpoint()
    model = AutoModel.from_pretrained(source)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    model.save_pretrained(source)
    with pytest.raises(ValueError, match=r"encoder.layer.1.output.dense: weight\[0, 0\] is nan"):
        AutoModel.from_pretrained(source, quantization_config=sr.SparseRuntimeConfig())


def test_arguments_for_a_packed_directory_are_not_silent(
    make_packed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.warns(UserWarning, match="from the model will be"),
    ):
        AutoModel.from_pretrained(
            make_packed(), quantization_config=sr.SparseRuntimeConfig(values="int4")
        )


def test_weights_made_up_by_transformers_are_not_packed(
    make_checkpoint: Any, tmp_path: Path
) -> None:
    source = make_checkpoint("Bert", "Model")
    model = AutoModel.from_pretrained(source)
    dense = model.encoder.layer[1].output.dense
    torch.nn.utils.prune.l1_unstructured(dense, "weight", 0.5)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")  # weight_orig, weight_mask
    with pytest.raises(ValueError, match=r"does not hold .*1\.output\.dense\.weight, .* convert"):
        AutoModel.from_pretrained(source, quantization_config=sr.SparseRuntimeConfig())
    sr.convert(source, tmp_path / "packed", progress=False)
    assert AutoModel.from_pretrained(tmp_path / "packed") is not None
