"""Masks of heads and neurons, as buffers (CAP) and as files (Kwon et al.), folded exactly."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, DistilBertConfig, DistilBertModel

from sparse_runtime import SparseModel
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.structured_masks import export_mask_buffers, export_mask_files
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.inspection import inspect

EXPORTERS = {"CAP structured masks": export_mask_buffers, "Kwon et al.": export_mask_files}
IDS = torch.arange(24).view(2, 12) * 7 % 50


def masks(*, real: bool) -> tuple[Tensor, Tensor]:
    """[2 layers, 4 heads] and [2, 48 neurons]: zeros, and ones or real numbers."""
    generator = torch.Generator().manual_seed(1)
    heads = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    neurons = (torch.rand(2, 48, generator=generator) > 0.4).float()
    if real:
        heads = heads * (0.5 + torch.rand(2, 4, generator=generator))
        neurons = neurons * (0.5 + torch.rand(2, 48, generator=generator))
    return heads, neurons


def masked_logits(bert: BertForMaskedLM, heads: Tensor, neurons: Tensor) -> Tensor:
    """What the pruning code computes: the context a head, and the activations, times the masks."""
    model = copy.deepcopy(bert)
    for index, layer in enumerate(model.bert.encoder.layer):
        head = heads[index].repeat_interleave(8)
        scale_heads = lambda _, args, mask=head: (args[0] * mask,)  # noqa: E731
        scale_neurons = lambda _, args, mask=neurons[index]: (args[0] * mask, *args[1:])  # noqa: E731
        layer.attention.output.dense.register_forward_pre_hook(scale_heads)
        layer.output.dense.register_forward_pre_hook(scale_neurons)
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("layout", list(EXPORTERS))
def test_the_converted_model_computes_what_the_masked_one_does(
    layout: str,
    real: bool,
    bert: BertForMaskedLM,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    heads, neurons = masks(real=real)
    EXPORTERS[layout](tmp_path / "source", model_config, untied, heads, neurons)
    report = convert(tmp_path / "source", tmp_path / "out", values="fp32", progress=False)
    assert report.recognised[0].layout.startswith(layout)
    assert "one float32 rounding" in report.steps[0]
    assert inspect(tmp_path / "source").steps == report.steps
    with torch.no_grad():
        packed = SparseModel.from_pretrained(tmp_path / "out")(input_ids=IDS).logits
        dense = bert(input_ids=IDS).logits
    expected = masked_logits(bert, heads, neurons)
    error = (packed - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()
    assert (dense - expected).abs().max() > 100 * error


@pytest.mark.parametrize("layout", list(EXPORTERS))
def test_binary_masks_change_no_weight_that_stays(
    layout: str, untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    heads, neurons = masks(real=False)
    EXPORTERS[layout](tmp_path, model_config, untied, heads, neurons)
    checkpoint = open_checkpoint(tmp_path)
    assert {*checkpoint.tensors} == {*untied}
    head, neuron = heads[1].repeat_interleave(8).bool(), neurons[0].bool()
    part = "bert.encoder.layer.1.attention"
    for name, kept in (
        (f"{part}.output.dense.weight", head.expand(32, 32)),
        (f"{part}.self.query.weight", head[:, None].expand(32, 32)),
        (f"{part}.self.value.bias", head),
        ("bert.encoder.layer.0.output.dense.weight", neuron.expand(32, 48)),
        ("bert.encoder.layer.0.intermediate.dense.weight", neuron[:, None].expand(48, 32)),
        ("bert.encoder.layer.0.intermediate.dense.bias", neuron),
        ("bert.encoder.layer.0.output.dense.bias", torch.ones(32, dtype=torch.bool)),
        ("bert.pooler.dense.weight", None),
    ):
        if name in untied:
            expected = untied[name] if kept is None else torch.where(kept, untied[name], 0)
            assert torch.equal(checkpoint.tensors[name], expected), name
            # Exact zeros, none of them negative.
            assert not torch.signbit(checkpoint.tensors[name][expected == 0]).any()


def test_real_masks_scale_columns_with_one_rounding(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    heads, neurons = masks(real=True)
    halved = {name: tensor.half() for name, tensor in untied.items()}
    export_mask_files(tmp_path, model_config, halved, heads, neurons)
    tensors = open_checkpoint(tmp_path).tensors
    name = "bert.encoder.layer.1.output.dense.weight"
    assert tensors.dtype(name) == "float32"
    assert torch.equal(tensors[name], halved[name].float() * neurons[1])
    name = "bert.encoder.layer.0.attention.output.dense.weight"
    assert torch.equal(tensors[name], halved[name].float() * heads[0].repeat_interleave(8))


def test_distilbert_has_the_same_masks_under_its_own_names(tmp_path: Path) -> None:
    config = DistilBertConfig(
        vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=16
    )
    torch.manual_seed(0)
    state = DistilBertModel(config).state_dict()
    heads, neurons = masks(real=False)
    export_mask_files(tmp_path, config.to_dict(), state, heads, neurons)
    tensors = open_checkpoint(tmp_path).tensors
    kept = heads[1].repeat_interleave(8).bool()
    name = "transformer.layer.1.attention.out_lin.weight"
    assert torch.equal(tensors[name], torch.where(kept, state[name], 0))
    name = "transformer.layer.0.ffn.lin1.bias"
    assert torch.equal(tensors[name], torch.where(neurons[0].bool(), state[name], 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": torch.ones(2, 12)}, r"head_mask.*\[2, 4\], got \[2, 12\]"),
        ({"heads": torch.ones(12, 4)}, r"head_mask.*\[2, 4\], got \[12, 4\]"),
        ({"neurons": torch.ones(2, 32)}, r"\[2, 48\], got \[2, 32\]"),
        (
            {"neurons": torch.full((2, 48), torch.inf)},
            r"mask.*: .* finite numbers, got inf at \[0, 0\]",
        ),
    ],
)
@pytest.mark.parametrize("layout", list(EXPORTERS))
def test_masks_of_another_model_are_refused(
    layout: str,
    change: dict[str, Tensor],
    said: str,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    heads, neurons = masks(real=False)
    parts = {"heads": heads, "neurons": neurons} | change
    EXPORTERS[layout](tmp_path, model_config, untied, parts["heads"], parts["neurons"])
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path).tensors["bert.encoder.layer.0.output.dense.weight"]


def test_a_configuration_without_the_sizes_is_refused(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    config = {key: value for key, value in model_config.items() if key != "num_attention_heads"}
    export_mask_files(tmp_path, config, untied, *masks(real=False))
    with pytest.raises(CheckpointError, match=r"no num_attention_heads, which head_mask\.pt needs"):
        open_checkpoint(tmp_path)
    config["num_attention_heads"] = "4"
    export_mask_files(tmp_path, config, untied, *masks(real=False))
    with pytest.raises(CheckpointError, match="a number from 1 as num_attention_heads, got '4'"):
        open_checkpoint(tmp_path)


def test_cropped_weights_do_not_take_the_masks_of_the_model_before(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    name = "bert.encoder.layer.0.attention.output.dense.weight"
    cropped = untied | {name: untied[name][:, :18]}
    export_mask_files(tmp_path, model_config, cropped, *masks(real=False))
    with pytest.raises(CheckpointError, match=rf"{name}: .* removed already"):
        open_checkpoint(tmp_path)


def test_half_of_the_masks_is_refused(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_mask_files(tmp_path, model_config, untied, *masks(real=False))
    (tmp_path / "head_mask.pt").unlink()
    with pytest.raises(CheckpointError, match=r"together, got no head_mask\.pt"):
        open_checkpoint(tmp_path)
    export_mask_buffers(tmp_path / "b", model_config, untied, *masks(real=False))
    tensors = torch.load(tmp_path / "b" / "pytorch_model.bin")
    del tensors["intermediate_mask"]
    torch.save(tensors, tmp_path / "b" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="intermediate_mask is missing"):
        open_checkpoint(tmp_path / "b")


class Payload:
    """Unpickling it by the ordinary rules makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_mask_files_run_nothing_and_hold_one_tensor(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_mask_files(tmp_path, model_config, untied, *masks(real=False))
    torch.save(Payload(tmp_path / "victim"), tmp_path / "head_mask.pt")
    with pytest.raises(CheckpointError, match=r"head_mask\.pt: .* without running code"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "victim").exists()
    torch.save({"mask": torch.ones(2, 4)}, tmp_path / "head_mask.pt")
    with pytest.raises(
        CheckpointError, match=r"head_mask\.pt: expected one plain tensor, got dict"
    ):
        open_checkpoint(tmp_path)
