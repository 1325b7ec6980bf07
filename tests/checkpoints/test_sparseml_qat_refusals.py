"""Damaged and unknown forms of SparseML's quantization-aware training are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

LAYER = "bert.encoder.layer.0.attention.self.query"
TABLE = "bert.embeddings.word_embeddings"
MATMUL = "bert.encoder.layer.1.attention.self.context_layer_matmul"
STUB = "quant.activation_post_process"


@pytest.fixture(scope="module")
def state(sparseml: dict[str, BertForSequenceClassification]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sparseml["obert"].state_dict().items()}


def test_fewer_bits_are_refused(state: dict[str, Tensor], write_qat: Callable[..., Path]) -> None:
    changes = {
        "scale": torch.tensor([2.0 / 127]),  # reduce_range: 0..127
        "zero_point": torch.tensor([64]),
        "activation_post_process.min_val": torch.tensor(-1.0),
        "activation_post_process.max_val": torch.tensor(1.0),
    }
    tensors = state | {f"{LAYER}.{STUB}.{name}": tensor for name, tensor in changes.items()}
    with pytest.raises(CheckpointError, match=f"{LAYER}.{STUB}: a quantizer of 7 bits"):
        open_checkpoint(write_qat(tensors))


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.module.weight",
        f"{LAYER}.module.weight_fake_quant.scale",
        f"{LAYER}.{STUB}.scale",
        f"{LAYER}.{STUB}.fake_quant_enabled",
        f"{LAYER}.{STUB}.activation_post_process.max_val",
        f"{TABLE}.weight_fake_quant.zero_point",
        f"{MATMUL}.input_quant_stubs.1.activation_post_process.observer_enabled",
    ],
)
def test_a_missing_tensor_is_refused(
    name: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    rest = {key: tensor for key, tensor in state.items() if key != name}
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_checkpoint(write_qat(rest))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (f"{LAYER}.module.weight_fake_quant.scale", torch.zeros(1), "finite number above 0, got 0"),
        (f"{LAYER}.module.weight_fake_quant.scale", torch.ones(32), "scale per channel"),
        (f"{LAYER}.module.weight_fake_quant.scale", torch.ones(1) * 1j, "got complex64"),
        (f"{LAYER}.module.weight_fake_quant.zero_point", torch.tensor([1]), "zero point 0, got 1"),
        (f"{LAYER}.{STUB}.zero_point", torch.tensor([256]), "an integer from -128 to 255"),
        (f"{LAYER}.{STUB}.more", torch.ones(1), "got more besides"),
        (f"{LAYER}.{STUB}.fake_quant_enabled", torch.tensor([7]), "0 or 1, got 7"),
        # Quantized inputs or outputs beside floats.
        (
            f"{LAYER}.module.weight_fake_quant.fake_quant_enabled",
            torch.tensor([0]),
            "quantizes its input and not its output, weight",
        ),
        (f"{TABLE}.weight", torch.ones(50, 32, dtype=torch.bfloat16), "expected float32"),
        (f"{MATMUL}.input_quant_stubs.0.activation_post_process.scale", -torch.ones(1), "above 0"),
    ],
)
def test_what_cannot_be_is_refused(
    name: str, value: Tensor, said: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(write_qat(state | {name: value}))
    assert name.partition(".activation_post_process")[0].split(".module")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # A module that SparseML wrapped as a whole, a product of another architecture.
        (f"{MATMUL}.input_quant_stubs.0", "bert.wrapped.input_quant_stubs.0", "other wrapped"),
        (f"{MATMUL}.input_quant_stubs.1", f"{MATMUL}.input_quant_stubs.2", "other wrapped"),
        # A quantizer behind a layer that is no linear one.
        (f"{MATMUL}.output_quant_stubs.0", "bert.embeddings.dropout", "products of attention"),
    ],
)
def test_quantizers_elsewhere_are_refused_by_name(
    old: str, new: str, said: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    moved = {name.replace(old, new): tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(write_qat(moved))
    assert f"{new}.activation_post_process" in str(caught.value)
    off = {f"{new}.activation_post_process.fake_quant_enabled": torch.tensor([0])}
    open_checkpoint(write_qat(moved | off))


def test_a_group_without_its_scale_behind_another_layer_is_refused(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    name = "bert.embeddings.dropout.activation_post_process.zero_point"
    with pytest.raises(CheckpointError, match="whole groups of quantizer tensors"):
        open_checkpoint(write_qat(state | {name: torch.tensor([0])}))


@pytest.mark.filterwarnings("ignore")  # torch says that what makes such models is deprecated
def test_converted_models_are_refused_by_name(write_qat: Callable[..., Path]) -> None:
    packed = torch.ao.nn.quantized.dynamic.Linear(4, 4).state_dict(prefix=f"{LAYER}.")
    with pytest.raises(CheckpointError, match=r"torch\.ao\.quantization\.convert") as caught:
        open_checkpoint(write_qat(dict(packed)))
    assert f"{LAYER}._packed_params" in str(caught.value)


def test_a_stale_plain_weight_beside_the_quantized_one_is_refused(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    stale = state | {f"{LAYER}.weight": torch.ones(32, 32)}
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.weight is in the file both plain and in"):
        open_checkpoint(write_qat(stale))
