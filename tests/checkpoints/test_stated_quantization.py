"""Floats with stated integers: exactly those integers open, and every contradiction is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.spec import ActivationSpec, ValueSpec

MODULE = "bert.encoder.layer.0.intermediate.dense"  # 48 outputs, 32 inputs
STATIC = ActivationSpec("static", "uint8", 0.5, 3)
FORMAT = {"format": "sparse_runtime.quantization", "version": "1"}


def statement(**changes: Any) -> dict[str, Any]:
    said = {"values": "int8", "scales": "row", "activations": STATIC.to_dict(), "outputs": None}
    return said | changes


def state(
    directory: Path,
    said: Any = None,
    scales: Tensor | None = None,
    metadata: dict[str, str] = FORMAT,
    module: str = MODULE,
) -> Path:
    """Write quantization.safetensors into a directory."""
    text = said if isinstance(said, str) else json.dumps(said or statement())
    save_file(
        {f"{module}.weight_scale": torch.full((48,), 0.25) if scales is None else scales},
        directory / "quantization.safetensors",
        metadata={**metadata, module: text},
    )
    return directory


@pytest.fixture
def integers() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (48, 32), generator=generator, dtype=torch.int8)


@pytest.fixture
def directory(untied: dict[str, Tensor], write: Callable[..., Path], integers: Tensor) -> Path:
    return write(untied | {f"{MODULE}.weight": integers * 0.25})


def test_the_stated_integers_open(directory: Path, integers: Tensor) -> None:
    plain = open_checkpoint(directory)
    assert not plain.linears and plain.is_plain
    checkpoint = open_checkpoint(state(directory))
    assert [*checkpoint.linears] == [MODULE]
    linear = checkpoint.linears[MODULE]
    assert (linear.values, linear.activations) == (ValueSpec("int8"), STATIC)
    assert torch.equal(linear.load().weight, integers)
    assert torch.equal(linear.load().scales, torch.full((48,), 0.25))
    assert f"{MODULE}.weight" not in checkpoint.tensors
    assert f"{MODULE}.bias" in checkpoint.tensors
    assert checkpoint.recognised[0].layout == "stated quantization"
    assert checkpoint.steps == (
        "1 modules are integers, checked against their scales: int8, scales row, inputs static "
        "uint8",
    )


def test_scales_of_chunks_groups_and_the_tensor(directory: Path, integers: Tensor) -> None:
    # 48 rows in chunks of 20 and 32 columns in groups of 12: both end in a shorter one.
    for scales, count in (("tensor", 1), ("chunk:20", 3), ("group:12", 48 * 3)):
        state(directory, statement(scales=scales), torch.full((count,), 0.25))
        assert torch.equal(open_checkpoint(directory).linears[MODULE].load().weight, integers)


@pytest.mark.parametrize(
    ("scale", "match"),
    [
        (0.24, rf"{MODULE}\.weight: expected integers times the scales .* with scale 0.24;"),
        (0.5, "the weights were changed after they were quantized"),
        (-1.0, "expected finite scales above 0, got -1.0"),
        (torch.nan, "expected finite scales above 0, got nan"),
    ],
)
def test_weights_off_their_scales_are_refused(directory: Path, scale: float, match: str) -> None:
    state(directory, scales=torch.full((48,), scale))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(directory).linears[MODULE].load()


def test_int4_values_beyond_the_range_are_refused(directory: Path) -> None:
    state(directory, statement(values="int4"))
    with pytest.raises(CheckpointError, match="expected integers times the scales"):
        open_checkpoint(directory).linears[MODULE].load()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"metadata": {"format": "pt"}}, r"expected \{'format': 'sparse_runtime.quantization'"),
        ({"metadata": FORMAT | {"version": "2"}}, "written by a later release"),
        ({"said": "{"}, "expected JSON"),
        ({"said": '{"values": "int8"}'}, "expected an object with activations, outputs"),
        ({"said": statement(values="fp32", activations=None)}, "expected 'int8' or 'int4'"),
        ({"said": statement(values=8)}, "values 8: expected one of"),
        ({"said": statement(scales=3)}, f"{MODULE}: "),
        ({"said": statement(scales="column")}, "scales 'column': expected"),
        ({"said": statement(activations={"scheme": "static"})}, "activations: missing keys"),
        ({"said": statement(outputs=STATIC.to_dict(), activations=None)}, "static activations"),
        ({"scales": torch.ones(47)}, r"expected float32 \[48\], got float32 \[47\]"),
        ({"scales": torch.ones(48).half()}, r"expected float32 \[48\], got float16 \[48\]"),
        ({"module": "bert.encoder.layer.9.output.dense"}, "it belongs to another model"),
        ({"module": "bert.embeddings.LayerNorm"}, "expected two sizes"),
    ],
)
def test_statements_that_mean_nothing_are_refused(
    directory: Path, arguments: dict[str, Any], match: str
) -> None:
    state(directory, **arguments)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(directory)


def test_modules_without_scales_and_damaged_files_are_refused(directory: Path) -> None:
    state(directory, metadata={**FORMAT, "bert.pooler.dense": json.dumps(statement())})
    with pytest.raises(CheckpointError, match="expected one weight_scale a module"):
        open_checkpoint(directory)
    (directory / "quantization.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"quantization\.safetensors: not a readable"):
        open_checkpoint(directory)


def test_bfloat16_weights_are_refused(
    untied: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    tensors = untied | {f"{MODULE}.weight": torch.ones(48, 32, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match="expected float32, which its integers"):
        open_checkpoint(state(write(tensors)))
