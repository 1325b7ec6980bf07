"""Packed directories through transformers: what runs, that it equals our model, saving again."""

from __future__ import annotations

import copy
import filecmp
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import sparse_runtime as sr
from sparse_runtime.spec import ActivationSpec, ValueSpec
from sparse_runtime.store import FormatError, load, save

TASKS = {
    "Model": AutoModel,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForMaskedLM": AutoModelForMaskedLM,
}
# Every structure and value type, every task, every family: the pooler is used and unused, the
# decoder tied, tensors of unknown size (unstructured) and without scales (floats).
CASES = [
    ("Bert", "Model", "unstructured", "int8"),
    ("Bert", "ForMaskedLM", "dense", "fp32"),
    ("Bert", "ForQuestionAnswering", "2:4", "int4"),
    ("Roberta", "ForMaskedLM", "block:4x1", "int8"),
    ("Roberta", "ForSequenceClassification", "unstructured", "fp32"),
    ("DistilBert", "ForTokenClassification", "dense", "int8"),
    ("DistilBert", "ForMaskedLM", "unstructured", "bf16"),
    ("Electra", "ForSequenceClassification", "2:4", "fp32"),
    ("MPNet", "Model", "block:4x1", "fp32"),
    ("MPNet", "ForSequenceClassification", "dense", "int8"),
]


def layers_of(model: torch.nn.Module) -> dict[str, sr.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, sr.Linear)}


@pytest.mark.parametrize(("family", "task", "structure", "values"), CASES)
def test_equals_everything_else_that_runs_the_directory(
    family: str,
    task: str,
    structure: str,
    values: str,
    make_packed: Any,
    drop_in: Any,
    dequantized: Any,
    run: Any,
    tmp_path: Path,
) -> None:
    packed, auto = make_packed(family, task, structure, values), TASKS[task]
    model, info = auto.from_pretrained(packed, output_loading_info=True)
    assert not any(info.values()), info
    assert len(layers_of(model)) == 12
    assert all(type(layer) is sr.Linear for layer in layers_of(model).values())
    got = run(model)
    # The same layers put in by hand run the same kernels on the same tensors.
    torch.testing.assert_close(got, run(drop_in(tmp_path / "float", packed, auto)), rtol=0, atol=0)
    ours = run(sr.SparseModel.from_pretrained(packed))
    reference = run(dequantized(tmp_path / "float", packed, auto))
    scale = float(reference.abs().max())
    # Integer layers quantize their inputs in both: attention in other precision tips a rounding.
    near, far = (1e-2, 5e-2) if values.startswith("int") else (1e-5, 1e-5)
    assert float((got - ours).abs().max()) < near * scale
    assert float((got - reference).abs().max()) < far * scale


def test_layers_of_quantization_aware_training(
    make_packed: Any, drop_in: Any, run: Any, tmp_path: Path
) -> None:
    # Zero points are one more tensor; inputs and outputs are quantized by fixed scales.
    packed = make_packed("Bert", "Model", "dense", "int8")
    model, name = load(packed), "encoder.layer.0.intermediate.dense"
    linear = model.linears[name]
    spec = replace(
        linear.packed.spec,
        values=ValueSpec("int8", zero_points=True),
        activations=ActivationSpec("static", "uint8", 0.05, 128),
        outputs=ActivationSpec("static", "int8", 0.05, 3),
    )
    zero_points = torch.arange(-20, 28, dtype=torch.int8)
    linear.packed = replace(linear.packed, spec=spec, zero_points=zero_points)
    save(model, packed, overwrite=True)
    loaded, info = AutoModel.from_pretrained(packed, output_loading_info=True)
    assert not any(info.values()) and loaded.get_submodule(name).spec == spec
    assert torch.equal(run(loaded), run(drop_in(tmp_path / "float", packed, AutoModel)))
    ours = run(sr.SparseModel.from_pretrained(packed))
    assert float((run(loaded) - ours).abs().max()) < 0.02 * float(ours.abs().max())
    loaded.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").linears[name].packed.spec == spec


@pytest.mark.parametrize(
    ("family", "task"),
    [("Bert", "ForMaskedLM"), ("Roberta", "ForSequenceClassification"), ("MPNet", "Model")],
)
def test_saved_again_it_is_the_same_packed_directory(
    family: str, task: str, make_packed: Any, run: Any, tmp_path: Path
) -> None:
    packed, again = make_packed(family, task), tmp_path / "again"
    model = TASKS[task].from_pretrained(packed)
    model.save_pretrained(again)
    assert filecmp.cmp(packed / "model.safetensors", again / "model.safetensors", shallow=False)
    before, after = (json.loads((d / "config.json").read_text()) for d in (packed, again))
    tied = after["sparse_runtime"].pop("tied")  # convert leaves them to the architecture
    assert tied.keys() <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert after["sparse_runtime"] | {"tied": {}} == before["sparse_runtime"]
    assert after["quantization_config"] == {"quant_method": "sparse_runtime"}
    reopened, info = TASKS[task].from_pretrained(again, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(run(reopened), run(model))
    ours = [sr.SparseModel.from_pretrained(directory) for directory in (packed, again)]
    assert torch.equal(run(ours[0]), run(ours[1]))


def test_a_model_without_its_head_is_saved_with_the_names_it_has(
    make_packed: Any, run: Any, tmp_path: Path
) -> None:
    # The file calls the layer bert.encoder..., the base model encoder...
    packed = make_packed("Bert", "ForSequenceClassification")
    model, info = AutoModel.from_pretrained(packed, output_loading_info=True)
    assert info["unexpected_keys"] == {"classifier.weight", "classifier.bias"}
    model.save_pretrained(tmp_path / "base")
    names = set(load(tmp_path / "base").linears)
    assert "encoder.layer.1.output.dense" in names and len(names) == 12
    ours = sr.SparseModel.from_pretrained(tmp_path / "base")
    assert ours.task == "base"
    torch.testing.assert_close(run(ours), run(model), rtol=0, atol=0.02)
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path / "base")), run(model))


def test_a_pooler_that_was_never_stored_is_left_out(make_packed: Any, batch: Any) -> None:
    model, info = AutoModel.from_pretrained(
        make_packed("Bert", "ForMaskedLM"), output_loading_info=True
    )
    assert model.pooler is None and not info["missing_keys"]
    with torch.no_grad():
        assert model(**batch).pooler_output is None


def test_a_head_that_was_packed_too(make_packed: Any, run: Any, tmp_path: Path) -> None:
    from sparse_runtime import store

    packed = store.load(make_packed("Bert", "ForSequenceClassification", num_labels=4))
    like = packed.linears["bert.encoder.layer.0.output.dense"].packed
    bias = packed.tensors.pop("classifier.bias")
    head = sr.Linear.from_dense(as_linear(packed.tensors.pop("classifier.weight"), bias))
    packed.linears["classifier"] = store.PackedLinear(head.packed, bias)
    store.save(packed, tmp_path / "with-head")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "with-head")
    assert type(model.classifier) is sr.Linear and like.spec.structure.kind == "unstructured"
    ours = run(sr.SparseModel.from_pretrained(tmp_path / "with-head"))
    torch.testing.assert_close(run(model), ours, rtol=0, atol=0.02)
    base = AutoModel.from_pretrained(tmp_path / "with-head")  # the head has no place there
    assert len(layers_of(base)) == 12


def as_linear(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


@pytest.mark.parametrize("values", ["int8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
def test_a_dtype_changes_the_floats_and_no_packed_tensor(
    values: str, dtype: Any, make_packed: Any, run: Any
) -> None:
    packed = make_packed("Bert", "Model", "unstructured", values)
    model = AutoModel.from_pretrained(packed, dtype=dtype)
    wanted = torch.float32 if dtype == "auto" else dtype
    assert model.dtype == wanted == run(model).dtype
    for name, linear in load(packed).linears.items():
        layer = model.get_submodule(name)
        assert layer.bias.dtype == wanted
        for part, tensor in linear.packed.tensors().items():
            assert torch.equal(getattr(layer, part), tensor) and tensor.any()
            assert getattr(layer, part).dtype == tensor.dtype
    full = run(AutoModel.from_pretrained(packed, dtype=torch.float32))
    assert float((run(model).float() - full).abs().max()) < 0.1 * float(full.abs().max())


def test_casting_a_loaded_model(make_packed: Any, run: Any, tmp_path: Path) -> None:
    packed = make_packed()
    model = AutoModel.from_pretrained(packed, torch_dtype=torch.float32)
    before = run(model)
    with pytest.raises(ValueError, match="not supported for quantized"):
        model.half()  # transformers' rule for every quantized model; .to() is allowed
    model.to(torch.bfloat16)
    assert run(model).dtype == torch.bfloat16
    layer = next(iter(layers_of(model).values()))
    assert (layer.values.dtype, layer.scales.dtype) == (torch.int8, torch.float32)
    assert float((run(model).float() - before).abs().max()) < 0.1 * float(before.abs().max())
    model.save_pretrained(tmp_path / "bf16")
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path / "bf16")), run(model))
    assert run(sr.SparseModel.from_pretrained(tmp_path / "bf16")).isfinite().all()


def test_calls_need_no_context_manager(
    make_packed: Any, make_checkpoint: Any, batch: Any, run: Any
) -> None:
    packed = AutoModel.from_pretrained(make_packed())
    config = sr.SparseRuntimeConfig()
    packing = AutoModel.from_pretrained(make_checkpoint(), quantization_config=config)
    for model in (packed, packing):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        output = model(**batch)[0]
        assert not output.requires_grad
        assert torch.equal(output[batch["attention_mask"].bool()], run(model))
    assert all(parameter.requires_grad for parameter in packed.dequantize().parameters())


@pytest.mark.parametrize("arguments", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}])
def test_a_device_map(arguments: dict[str, Any], make_packed: Any, run: Any) -> None:
    pytest.importorskip("accelerate")
    packed = make_packed()
    model = AutoModel.from_pretrained(packed, **arguments, low_cpu_mem_usage=True)
    assert torch.equal(run(model), run(AutoModel.from_pretrained(packed)))


def test_copies_and_pickles(make_packed: Any, run: Any) -> None:
    model = AutoModel.from_pretrained(make_packed())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other), run(model))
        assert other.hf_quantizer.is_serializable() and len(layers_of(other)) == 12


def test_state_dicts_load_again(make_packed: Any, run: Any) -> None:
    packed = make_packed()
    model, other = (AutoModel.from_pretrained(packed) for _ in range(2))
    expected = run(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.get_submodule("encoder.layer.0.output.dense").values.zero_()
    other.load_state_dict(state)
    assert torch.equal(run(other), expected)


def test_training_is_refused(make_packed: Any, batch: Any) -> None:
    model = AutoModel.from_pretrained(make_packed())
    assert not model.training and not model.hf_quantizer.is_trainable
    assert not any(layer.bias.requires_grad for layer in layers_of(model).values())
    model.train()
    with pytest.raises(RuntimeError, match="is for inference and the module is in training mode"):
        model(**batch)


def test_a_directory_from_before_the_field(make_packed: Any, run: Any) -> None:
    packed = make_packed()
    expected = run(AutoModel.from_pretrained(packed))
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    model = AutoModel.from_pretrained(packed, quantization_config=sr.SparseRuntimeConfig())
    assert torch.equal(run(model), expected)
    sr.SparseModel.from_pretrained(packed).save_pretrained(packed, overwrite=True)
    assert torch.equal(run(AutoModel.from_pretrained(packed)), expected)


def test_unpacked_again_it_is_a_float_model(
    make_packed: Any, dequantized: Any, run: Any, tmp_path: Path
) -> None:
    packed = make_packed("Bert", "ForMaskedLM")
    model = AutoModelForMaskedLM.from_pretrained(packed).dequantize()
    expected = run(dequantized(tmp_path / "float", packed, AutoModelForMaskedLM))
    assert torch.equal(run(model), expected) and not layers_of(model)
    model.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"sparse_runtime", "quantization_config"} & set(config)
    assert torch.equal(run(AutoModelForMaskedLM.from_pretrained(tmp_path / "dense")), expected)


def test_shards_open_again_in_transformers_alone(
    make_packed: Any, run: Any, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(make_packed())
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path / "shards")), run(model))
    with pytest.raises(FormatError, match=r"model.safetensors: expected the packed weights"):
        sr.SparseModel.from_pretrained(tmp_path / "shards")
