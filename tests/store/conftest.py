"""A small packed model of every structure, and the means to tamper with its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_runtime.formats import cast_values, pack, project
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)
from sparse_runtime.store import PackedLinear, PackedModel, save

# 6x10: the last 2:4 group, block and bitmask byte of each row hold padding.
SHAPE = (6, 10)
LAYERS = [
    ("encoder.layer.0.query", "dense", "int8", "row"),
    ("encoder.layer.0.key", "unstructured", "fp32", "row"),
    ("encoder.layer.0.value", "2:4", "int8", "chunk:4"),
    ("encoder.layer.1.query", "block:4x1", "bf16", "row"),
    ("encoder.layer.1.key", "3:6", "int4", "tensor"),
    ("encoder.layer.1.value", "block:2x4", "int8", "row"),
]


def packed_linear(
    structure: str, dtype: str, scales_text: str, generator: torch.Generator, bias: bool
) -> PackedLinear:
    parsed, values = Structure.parse(structure), ValueSpec.parse(dtype, scales_text)
    sparsity = 0.5 if parsed.kind in ("unstructured", "block") else None
    weight = project(torch.randn(SHAPE, generator=generator), parsed, sparsity)
    stored, scales = cast_values(weight, values)
    static = ActivationSpec("static", "uint8", 0.125, 17)
    activations = None
    if values.is_integer:
        dynamic = ActivationSpec("dynamic", "int8" if structure == "dense" else "uint8")
        activations = static if structure == "2:4" else dynamic
    packed = pack(stored, LinearSpec(SHAPE, parsed, values, activations), scales)
    return PackedLinear(packed, torch.randn(SHAPE[0], generator=generator) if bias else None)


def foreign_linear(generator: torch.Generator) -> PackedLinear:
    """As other tools write them: zero points, short last groups of 4 inputs, outputs, no bias."""
    values = ValueSpec.parse("int8", "group:4", zero_points=True)
    static = ActivationSpec("static", "uint8", 0.125, 17)
    outputs = ActivationSpec("static", "int8", 0.25, -3)
    spec = LinearSpec(SHAPE, Structure("dense"), values, static, outputs)
    weight, zero_points = (
        torch.randint(-128, 128, size, generator=generator).to(torch.int8)
        for size in (SHAPE, (spec.scale_count,))
    )
    scales = torch.rand(spec.scale_count, generator=generator) + 0.01
    return PackedLinear(pack(weight, spec, scales, zero_points))


ATTENTION = QuantizedAttention(
    query=ActivationSpec("static", "uint8", 0.5, 128), key=ActivationSpec("static", "int8", 0.25)
)


@pytest.fixture
def make_model() -> Callable[..., PackedModel]:
    def make(seed: int = 0) -> PackedModel:
        generator = torch.Generator().manual_seed(seed)
        linears = {
            name: packed_linear(structure, dtype, scales, generator, bias=index % 3 != 2)
            for index, (name, structure, dtype, scales) in enumerate(LAYERS)
        }
        linears["encoder.layer.2.query"] = foreign_linear(generator)
        return PackedModel(
            config={"model_type": "bert", "hidden_size": 10, "id2label": {"0": "no", "1": "yes"}},
            linears=linears,
            tensors={
                "embeddings.word_embeddings.weight": torch.randn(7, 10, generator=generator),
                "embeddings.LayerNorm.weight": torch.ones(10),
                "embeddings.position_ids": torch.arange(5).unsqueeze(0),
                "classifier.weight": torch.randn(2, 10, generator=generator).half(),
            },
            aliases={"cls.decoder.weight": "embeddings.word_embeddings.weight"},
            provenance={"source": "tiny", "seed": seed, "steps": [{"prune": "2:4"}]},
            attention={"encoder.layer.2": ATTENTION},
        )

    return make


@pytest.fixture
def saved(make_model: Callable[..., PackedModel], tmp_path: Path) -> Path:
    """The directory of a sound packed model."""
    save(make_model(), tmp_path / "model")
    return tmp_path / "model"


class Tampered:
    """The two files of a packed model, taken apart and written back as they are told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        raw = (directory / "model.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = bytearray(raw[8 + length :])
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())

    @property
    def section(self) -> dict[str, Any]:
        return self.config["sparse_runtime"]

    def write(self) -> None:
        self.write_weights(json.dumps(self.header).encode())
        (self.directory / "config.json").write_text(json.dumps(self.config))

    def write_weights(self, header: bytes, length: int | None = None) -> None:
        header += b" " * (-len(header) % 8)
        stated = len(header) if length is None else length
        raw = stated.to_bytes(8, "little") + header + bytes(self.data)
        (self.directory / "model.safetensors").write_bytes(raw)

    def put(self, name: str, offset: int, new: bytes) -> None:
        """Overwrite bytes of one tensor."""
        start = self.header[name]["data_offsets"][0] + offset
        self.data[start : start + len(new)] = new


@pytest.fixture
def tampered(saved: Path) -> Tampered:
    return Tampered(saved)
