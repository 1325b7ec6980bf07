"""What transformers would make up, cast or skip is an error with a packed directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertModel,
)

import sparse_runtime as sr
from sparse_runtime.checkpoints import CheckpointError
from sparse_runtime.store import FormatError

LAYER = "encoder.layer.1.intermediate.dense"


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("part", ["values", "bitmask", "scales", "bias"])
def test_a_missing_tensor_of_a_layer(part: str, make_packed: Any) -> None:
    packed = make_packed()
    change_tensors(packed, lambda tensors: tensors.pop(f"{LAYER}.{part}"))
    with pytest.raises(FormatError, match=rf"missing tensors \['{LAYER}.{part}'\]"):
        AutoModel.from_pretrained(packed)


def test_a_bias_that_neither_file_names(make_packed: Any) -> None:
    packed = make_packed()
    change_tensors(packed, lambda tensors: tensors.pop(f"{LAYER}.bias"))
    change_config(packed, lambda c: c["sparse_runtime"]["tensors"].remove(f"{LAYER}.bias"))
    with pytest.raises(ValueError, match=f"does not hold: {LAYER}.bias. Weights are never made up"):
        AutoModel.from_pretrained(packed)


def test_an_unknown_tensor(make_packed: Any) -> None:
    packed = make_packed()
    change_tensors(packed, lambda tensors: tensors.update(extra=torch.ones(2)))
    with pytest.raises(FormatError, match=r"unknown tensors \['extra'\]"):
        AutoModel.from_pretrained(packed)


def test_a_head_that_is_not_there(make_packed: Any) -> None:
    packed = make_packed("Bert", "ForQuestionAnswering")
    with pytest.raises(ValueError, match=r"ForSequenceClassification needs .*: bert.pooler.dense"):
        AutoModelForSequenceClassification.from_pretrained(packed)
    AutoModelForQuestionAnswering.from_pretrained(packed)


def test_a_head_on_a_base_model(make_packed: Any) -> None:
    packed = make_packed("Bert", "Model")  # its pooler is there
    with pytest.raises(ValueError, match=r"does not hold: classifier.bias, classifier.weight\."):
        AutoModelForSequenceClassification.from_pretrained(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, "no place for the packed layers encoder.layer.1.attention"),
        ({"num_hidden_layers": 3}, "does not hold: encoder.layer.2.attention"),
        ({"intermediate_size": 40}, r"expected a packed weight \[40, 32\].*, got \[48, 32\]"),
        ({"is_decoder": True, "add_cross_attention": True}, "does not hold: .*crossattention"),
    ],
)
def test_a_configuration_of_another_model(
    change: dict[str, Any], message: str, make_packed: Any
) -> None:
    packed = make_packed()
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(packed, **change)


def flip(name: str, value: int | float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[f"{LAYER}.{name}"].flatten()[:1].fill_(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip("scales", float("nan")), "scales: expected finite numbers above 0"),
        (flip("bias", float("inf")), "bias: expected finite numbers"),
        (flip("bitmask", 0), "values: expected"),
        (
            lambda t: t.update({f"{LAYER}.values": t[f"{LAYER}.values"].to(torch.float32)}),
            "values: expected torch.int8 .* got torch.float32",
        ),
        (lambda t: t.update({f"{LAYER}.values": t[f"{LAYER}.values"][1:].clone()}), "values"),
    ],
    ids=["scale", "bias", "mask", "type", "size"],
)
def test_tensors_that_no_packer_writes(change: Any, message: str, make_packed: Any) -> None:
    packed = make_packed()
    change_tensors(packed, change)
    with pytest.raises(FormatError, match=f"{LAYER}.{message}"):
        AutoModel.from_pretrained(packed)


def test_a_directory_that_lost_its_section(make_packed: Any) -> None:
    packed = make_packed()
    change_config(packed, lambda config: config.pop("sparse_runtime"))
    with pytest.raises(ValueError, match=r"the section 'sparse_runtime' .* is missing"):
        AutoModel.from_pretrained(packed)


def test_a_newer_section(make_packed: Any) -> None:
    packed = make_packed()
    change_config(packed, lambda config: config["sparse_runtime"].update(format_version=9))
    with pytest.raises(ValueError, match="expected at most 1, got 9"):
        AutoModel.from_pretrained(packed)


def test_attention_that_transformers_cannot_run(make_packed: Any) -> None:
    packed = make_packed()
    static = {"scheme": "static", "dtype": "int8", "scale": 0.125, "zero_point": 0}
    names = ("query", "key", "probabilities", "value", "scores", "context")
    quantized = {"encoder.layer.1": dict.fromkeys(names) | {"query": static}}
    change_config(packed, lambda config: config["sparse_runtime"].update(attention=quantized))
    with pytest.raises(ValueError, match=r"encoder.layer.1: its attention is quantized"):
        AutoModel.from_pretrained(packed)


@pytest.mark.parametrize(
    "field", [{"quant_method": "gptq"}, {"quant_method": "sparse_runtime", "bits": 8}, "x"]
)
def test_our_reader_refuses_another_method(field: Any, make_packed: Any) -> None:
    packed = make_packed()
    change_config(packed, lambda config: config.update(quantization_config=field))
    with pytest.raises(FormatError, match="quantization_config: expected quant_method 'sparse_run"):
        sr.SparseModel.from_pretrained(packed)


def test_our_writer_refuses_the_field(make_packed: Any, tmp_path: Path) -> None:
    from sparse_runtime import store

    model = store.load(make_packed())
    assert "quantization_config" not in model.config
    model.config["quantization_config"] = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="key 'quantization_config' is written by save"):
        store.save(model, tmp_path / "other")


def test_converting_a_packed_directory_again(make_packed: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already packed"):
        sr.convert(make_packed(), tmp_path / "twice")


def test_arguments_for_what_is_packed_already(make_packed: Any) -> None:
    packed = make_packed()
    change_config(packed, lambda config: config.pop("quantization_config"))
    with pytest.raises(ValueError, match=r"packed already, so \['values'\] cannot be chosen"):
        AutoModel.from_pretrained(packed, quantization_config=sr.SparseRuntimeConfig(values="int4"))


def test_tensors_that_come_from_no_file(make_packed: Any) -> None:
    packed = make_packed()
    state = load_file(packed / "model.safetensors")
    with pytest.raises(ValueError, match="a packed model loads from its safetensors file"):
        BertModel.from_pretrained(None, config=AutoConfig.from_pretrained(packed), state_dict=state)


def test_a_model_spread_over_devices(make_packed: Any) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match="packed layers run on one device"):
        AutoModel.from_pretrained(
            make_packed(), device_map={"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
        )


@pytest.mark.parametrize("device", ["disk", "meta", torch.device("meta")])
def test_a_model_on_no_device(device: Any, make_packed: Any, make_checkpoint: Any) -> None:
    pytest.importorskip("accelerate")
    floats = {"quantization_config": sr.SparseRuntimeConfig()}
    for directory, options in ((make_packed(), {}), (make_checkpoint(), floats)):
        with pytest.raises(ValueError, match=r"are not offloaded, got \['(disk|meta)'\]; name one"):
            AutoModel.from_pretrained(directory, device_map={"": device}, **options)


def test_a_model_saved_after_replace_linears(make_checkpoint: Any, tmp_path: Path) -> None:
    model = sr.replace_linears(AutoModel.from_pretrained(make_checkpoint()))
    model.save_pretrained(tmp_path / "replaced")
    message = (
        r"saved after sparse_runtime\.replace_linears.*=sparse_runtime\.SparseRuntimeConfig\(\)"
    )
    with pytest.raises(ValueError, match=message):
        sr.SparseModel.from_pretrained(tmp_path / "replaced")
    with pytest.raises(CheckpointError, match=message):
        sr.convert(tmp_path / "replaced", tmp_path / "out", progress=False)
    # The way out that it names.
    config = sr.SparseRuntimeConfig()
    AutoModel.from_pretrained(make_checkpoint(), quantization_config=config).save_pretrained(
        tmp_path / "packed"
    )
    assert sr.SparseModel.from_pretrained(tmp_path / "packed").task == "base"
