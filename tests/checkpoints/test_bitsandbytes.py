"""LLM.int8() of bitsandbytes: exact weights, and a question about its activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.spec import ActivationSpec

LAYER = "encoder.layer.0.output.dense"
SECTION = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 4.5}
CONFIG = {"model_type": "bert", "quantization_config": SECTION}
PARTS = {
    "weight": torch.tensor([[127, -64, 0], [-127, 1, 2], [5, 5, 5]], dtype=torch.int8),
    "bias": torch.ones(3, dtype=torch.float16),
    "SCB": torch.tensor([3.0, 0.1, 0.0]),  # the last row is zeros, whatever its integers are
    "weight_format": torch.tensor(0, dtype=torch.uint8),
}


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    return {f"{LAYER}.{n}": t for n, t in (PARTS | changes).items() if t is not None}


@pytest.mark.parametrize(
    ("choice", "activations"),
    [("none", None), ("symmetric", ActivationSpec("dynamic", "int8"))],
)
def test_integers_stay_what_they_are(
    choice: str, activations: ActivationSpec | None, write: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(write(tensors(), config=CONFIG), finalise={"activations": choice})
    linear = checkpoint.linears[LAYER]
    stored = linear.load()
    assert linear.activations == activations
    assert stored.weight.tolist() == [[127, -64, 0], [-127, 1, 2], [0, 0, 0]]
    assert torch.equal(stored.scales, torch.tensor([3.0 / 127, 0.1 / 127, 1.0]))
    assert list(checkpoint.tensors) == [f"{LAYER}.bias"]
    assert f"activations={choice} as asked for" in checkpoint.steps[0]


def test_a_section_may_name_no_method(write: Callable[..., Path]) -> None:
    config = CONFIG | {"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 4.5}}
    checkpoint = open_checkpoint(write(tensors(), config=config), finalise={"activations": "none"})
    assert checkpoint.linears[LAYER].load().weight.tolist()[0] == [127, -64, 0]
    assert checkpoint.recognised[0].why == "load_in_8bit of config.json"
    four = {f"{LAYER}.weight.absmax": torch.ones(3)}
    config = CONFIG | {"quantization_config": {"load_in_4bit": True}}
    with pytest.raises(CheckpointError, match="4-bit layout"):
        open_checkpoint(write(four, config=config))


def test_activations_are_asked_for(write: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(write(tensors(), config=CONFIG))
    assert "magnitude above 4.5" in str(caught.value)
    assert "--finalise activations=none" in str(caught.value)
    with pytest.raises(CheckpointError, match="expected one of none, symmetric"):
        open_checkpoint(write(tensors(), config=CONFIG), finalise={"activations": "dynamic"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SCB": torch.tensor([1.0, float("nan"), 1.0])}, "finite magnitudes"),
        ({"SCB": torch.tensor([1.0, -1.0, 1.0])}, "finite magnitudes"),
        ({"SCB": torch.ones(4)}, "float32 [3], got float32 [4]"),
        ({"SCB": torch.ones(3, dtype=torch.float16)}, "got float16 [3]"),
        ({"weight": torch.ones(3, 3)}, "an int8 matrix beside SCB, got float32"),
        ({"weight": torch.ones(9, dtype=torch.int8)}, "got int8 [9]"),
        ({"weight": None}, "weight is missing"),
        ({"SCB": None, "weight_format": torch.tensor(0, dtype=torch.uint8)}, "SCB is missing"),
        ({"weight_format": torch.tensor(1, dtype=torch.uint8)}, "expected 0, weights in rows"),
        ({"weight_format": torch.zeros(2, dtype=torch.uint8)}, "expected 0, weights in rows"),
    ],
)
def test_parts_that_disagree(
    changes: dict[str, Any], said: str, write: Callable[..., Path]
) -> None:
    directory = write(tensors(**changes), config=CONFIG)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory, finalise={"activations": "none"}).linears[LAYER].load()
    assert said in str(caught.value)
    assert LAYER in str(caught.value)


def test_integers_without_their_magnitudes(write: Callable[..., Path]) -> None:
    whole = tensors() | {f"{LAYER}.2.weight": PARTS["weight"].clone()}
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.2\.weight \(int8\)"):
        open_checkpoint(write(whole, config=CONFIG), finalise={"activations": "none"})


def test_four_bits_are_refused(write: Callable[..., Path]) -> None:
    names = ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")
    packed = {f"{LAYER}.{name}": torch.ones(2) for name in names}
    with pytest.raises(CheckpointError, match=r"4-bit layout .* load_in_8bit"):
        open_checkpoint(write(packed, config=CONFIG))


def test_a_table_is_refused(write: Callable[..., Path]) -> None:
    table = {f"embeddings.word_embeddings.{name}": PARTS[name] for name in ("weight", "SCB")}
    with pytest.raises(CheckpointError, match="got a table"):
        open_checkpoint(write(table, config=CONFIG), finalise={"activations": "none"})
