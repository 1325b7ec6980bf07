"""Packed models written for compressed-tensors: what is read back is what was packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.formats import pack
from sparse_runtime.integrations.compressed_tensors import export_compressed_tensors
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)
from sparse_runtime.store import PackedLinear, PackedModel, save
from sparse_runtime.tools.integers import pack_integers

LAYER = "bert.encoder.layer.0.output.dense"
CONFIG = {"model_type": "bert", "hidden_size": 8}
DYNAMIC = ActivationSpec("dynamic", "int8", narrow_range=False)
STATIC = ActivationSpec("static", "int8", 0.5, 0)


def packed_linear(
    values: ValueSpec,
    activations: ActivationSpec | None = None,
    outputs: ActivationSpec | None = None,
    structure: str = "dense",
) -> PackedLinear:
    """A layer of 8 rows and 16 columns."""
    generator = torch.Generator().manual_seed(0)
    spec = LinearSpec((8, 16), Structure.parse(structure), values, activations, outputs)
    if not values.is_integer:
        weight = torch.randn(8, 16, generator=generator).to(values.torch_dtype)
        return PackedLinear(pack(weight, spec))
    high = 7 if values.dtype == "int4" else 127
    weight = torch.randint(-high - 1, high + 1, (8, 16), generator=generator, dtype=torch.int8)
    if structure == "2:4":
        weight = weight * torch.tensor([1, 0, 1, 0] * 4, dtype=torch.int8)
    scales = torch.rand(spec.scale_count, generator=generator) + 0.1
    zero_points = None
    if values.zero_points:
        zero_points = torch.randint(-8, 8, scales.shape, generator=generator, dtype=torch.int8)
    return PackedLinear(pack(weight, spec, scales, zero_points), torch.ones(8))


def packed_model(*linears: PackedLinear, **arguments: Any) -> PackedModel:
    names = [LAYER.replace("0", str(number)) for number in range(len(linears))]
    embeddings = {"bert.embeddings.word_embeddings.weight": torch.ones(4, 8, dtype=torch.float16)}
    return PackedModel(CONFIG, dict(zip(names, linears, strict=True)), embeddings, **arguments)


@pytest.mark.parametrize(
    "linear",
    [
        packed_linear(ValueSpec("int8"), DYNAMIC),
        packed_linear(ValueSpec("int8", "tensor"), STATIC),
        packed_linear(ValueSpec("int8", zero_points=True), DYNAMIC),
        packed_linear(ValueSpec("int4", "group", group_cols=4)),
        packed_linear(ValueSpec("int4", "group", zero_points=True, group_cols=8), DYNAMIC),
        packed_linear(ValueSpec("int8"), STATIC, ActivationSpec("static", "int8", 0.25, -3)),
        packed_linear(ValueSpec("int8"), DYNAMIC, structure="2:4"),
        packed_linear(ValueSpec("int8"), structure="unstructured"),
    ],
)
def test_what_is_written_is_read_back(linear: PackedLinear, tmp_path: Path) -> None:
    save(packed_model(linear), tmp_path / "packed")
    export_compressed_tensors(tmp_path / "packed", tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    found = checkpoint.linears[LAYER]
    spec = linear.packed.spec
    assert (found.values, found.activations, found.outputs) == (
        spec.values,
        spec.activations,
        spec.outputs,
    )
    again, _ = pack_integers(found, spec.structure)
    for name, tensor in linear.packed.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert torch.equal(checkpoint.tensors[f"{LAYER}.bias"], torch.ones(8))
    assert checkpoint.tensors["bert.embeddings.word_embeddings.weight"].dtype == torch.float16
    assert checkpoint.config == CONFIG


def test_chunks_of_rows_become_rows(tmp_path: Path) -> None:
    linear = packed_linear(ValueSpec("int8", "chunk", 3))
    export_compressed_tensors(packed_model(linear), tmp_path / "out")
    again, _ = pack_integers(open_checkpoint(tmp_path / "out").linears[LAYER], None)
    assert torch.equal(again.dequantize(), linear.packed.dequantize())
    assert again.spec.values == ValueSpec("int8")


def test_unsigned_static_inputs_are_shifted(tmp_path: Path) -> None:
    linear = packed_linear(ValueSpec("int8"), ActivationSpec("static", "uint8", 0.5, 30))
    export_compressed_tensors(packed_model(linear), tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").linears[LAYER]
    assert found.activations == ActivationSpec("static", "int8", 0.5, -98)


def test_layers_that_differ_are_groups_and_floats_stay_floats(tmp_path: Path) -> None:
    model = packed_model(
        packed_linear(ValueSpec("int8"), DYNAMIC),
        packed_linear(ValueSpec("int8")),
        packed_linear(ValueSpec("bf16")),
        packed_linear(ValueSpec("int8"), DYNAMIC),
    )
    export_compressed_tensors(model, tmp_path / "out")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = [group["targets"] for group in section["config_groups"].values()]
    names = list(model.linears)
    assert targets == [[names[0], names[3]], [names[1]]]
    assert section["format"] == "mixed-precision"
    checkpoint = open_checkpoint(tmp_path / "out")
    assert set(checkpoint.linears) == {names[0], names[1], names[3]}
    assert checkpoint.tensors.dtype(f"{names[2]}.weight") == "bfloat16"


def test_aliases_that_transformers_does_not_tie_are_written(tmp_path: Path) -> None:
    words = "bert.embeddings.word_embeddings.weight"
    model = packed_model(
        packed_linear(ValueSpec("int8")),
        aliases={"cls.predictions.decoder.weight": words, "extra.weight": words},
    )
    export_compressed_tensors(model, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "extra.weight" in names
    assert "cls.predictions.decoder.weight" not in names


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            packed_model(packed_linear(ValueSpec("int8"), ActivationSpec("dynamic", "uint8"))),
            f"{LAYER}: its input is quantized to dynamic uint8",
        ),
        (
            packed_model(packed_linear(ValueSpec("int8"), ActivationSpec("dynamic", "int8"))),
            "int8 over -127..127",
        ),
        (
            packed_model(packed_linear(ValueSpec("int8", "group", group_cols=5))),
            "groups of 5 inputs do not divide 16",
        ),
        (
            packed_model(
                packed_linear(ValueSpec("int8")),
                attention={"bert.encoder.layer.0": QuantizedAttention(query=STATIC)},
            ),
            "its attention is quantized",
        ),
        (
            packed_model(packed_linear(ValueSpec("int8")), absent=("bert.encoder.layer.1.ffn",)),
            "bert.encoder.layer.1.ffn is absent",
        ),
        (
            packed_model(packed_linear(ValueSpec("int8")), head_size=64),
            "heads have 64 features each, not hidden_size / num_attention_heads",
        ),
    ],
)
def test_what_the_format_cannot_state_is_refused(
    model: PackedModel, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        export_compressed_tensors(model, tmp_path / "out")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inner", [16, 8, 20])
def test_a_cropped_network_is_refused(inner: int, tmp_path: Path) -> None:
    shapes = {
        "attention.self.query": (8, 8),
        "intermediate.dense": (16, 8),
        "output.dense": (8, 16),
    }
    linears = {}
    for number in (0, 11):
        for name, shape in shapes.items():
            spec = LinearSpec(shape, Structure("dense"), ValueSpec("int8", "tensor"))
            packed = pack(torch.ones(shape, dtype=torch.int8), spec, torch.ones(1))
            linears[f"bert.encoder.layer.{number}.{name}"] = PackedLinear(packed)
    model = PackedModel({**CONFIG, "intermediate_size": inner}, linears, {})
    if inner == 16:
        export_compressed_tensors(model, tmp_path / "out")
        return
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0: expected matrices of"):
        export_compressed_tensors(model, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="a new or an empty directory"):
        export_compressed_tensors(packed_model(packed_linear(ValueSpec("int8"))), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
