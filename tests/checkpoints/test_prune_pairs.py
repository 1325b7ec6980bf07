"""torch.nn.utils.prune, written by itself: opened exactly, and refused where it is incomplete."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune
from transformers import BertForMaskedLM

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.tools.convert import convert

LAYER = "bert.encoder.layer.0.output.dense"


def pruned_state(model: BertForMaskedLM) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what torch saves of a pruned model, the same after prune.remove)."""
    model = copy.deepcopy(model)
    modules = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layer." in name
    ]
    for module in modules:
        prune.l1_unstructured(module, "weight", amount=0.8)
    prune.random_unstructured(modules[0], "bias", amount=0.5)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for module in modules:
        prune.remove(module, "weight")
    prune.remove(modules[0], "bias")
    after = {name: t.clone() for name, t in model.state_dict().items()}
    return before, after


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
def test_pairs_open_as_after_prune_remove(
    layout: str, bert: BertForMaskedLM, write: Callable[..., Path]
) -> None:
    before, after = pruned_state(bert)
    checkpoint = open_checkpoint(write(before, layout))
    assert checkpoint.layout.startswith("torch.nn.utils.prune in hugging_face: ")
    assert {*checkpoint.tensors, *checkpoint.aliases} == set(after)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.tensors[name], after[name]), name
    assert checkpoint.steps == (
        "weight = weight_orig x weight_mask in 12 modules",
        "bias = bias_orig x bias_mask in 1 modules",
    )
    assert "13" not in checkpoint.recognised[0].why  # counts tensors, not modules
    assert "26 tensors" in checkpoint.recognised[0].why


def test_pairs_convert_to_the_zeros_of_the_masks(
    bert: BertForMaskedLM,
    write: Callable[..., Path],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    before, after = pruned_state(bert)
    report = convert(write(before, config=model_config), tmp_path / "packed", progress=False)
    zeros = {layer.name: layer.density for layer in report.layers}
    for name, density in zeros.items():
        weight = after[f"{name}.weight"]
        assert density == int((weight != 0).sum()) / weight.numel()
    assert report.recognised[0].layout == "torch.nn.utils.prune"


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint = open_checkpoint(directory)
        for name in checkpoint.tensors:
            checkpoint.tensors[name]
    return str(caught.value)


def test_half_a_pair_is_refused(bert: BertForMaskedLM, write: Callable[..., Path]) -> None:
    before, _ = pruned_state(bert)
    for part in ("weight_orig", "weight_mask"):
        message = refusal(write({n: t for n, t in before.items() if n != f"{LAYER}.{part}"}))
        assert LAYER in message
        assert "one alone" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_mask": torch.full((32, 48), 0.5)}, "mask of 0 and 1"),
        ({"weight_mask": torch.ones(48, 32)}, "[32, 48], got [48, 32]"),
        ({"weight": torch.ones(32, 48)}, "both plain and in the layout"),
    ],
)
def test_what_contradicts_itself_is_refused(
    change: dict[str, Tensor], said: str, bert: BertForMaskedLM, write: Callable[..., Path]
) -> None:
    before, _ = pruned_state(bert)
    message = refusal(write(before | {f"{LAYER}.{part}": t for part, t in change.items()}))
    assert said in message
    assert LAYER in message


def test_an_option_that_nothing_reads_is_refused(
    bert: BertForMaskedLM, write: Callable[..., Path]
) -> None:
    before, _ = pruned_state(bert)
    with pytest.raises(CheckpointError, match="threshold means nothing for this checkpoint"):
        open_checkpoint(write(before), finalise={"threshold": 0.1})
