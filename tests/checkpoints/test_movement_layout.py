"""Movement pruning, soft movement pruning and CAP: scores and their published binarizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.checkpoints.layouts.movement import above, highest, l0_gates
from sparse_runtime.testing.exporters.directory import write_directory
from sparse_runtime.testing.exporters.movement import export_movement

LAYER = "bert.encoder.layer.1.intermediate.dense"
# What each method's threshold is for the exporter's scores, and for a quarter of zeros.
THRESHOLDS = {"topK": 0.25, "magnitude": "0.25", "sigmoied_threshold": 0.1, "threshold": 0.0}


def options(method: str) -> dict[str, Any]:
    return {"threshold": THRESHOLDS[method]} if method in THRESHOLDS else {}


@pytest.mark.parametrize("method", [*THRESHOLDS, "l0"])
def test_scores_become_zeros(
    method: str,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    export_movement(tmp_path, model_config, pruned, method)
    checkpoint = open_checkpoint(tmp_path, finalise=options(method))
    holds(checkpoint, pruned)
    assert checkpoint.config["model_type"] == "bert"
    assert checkpoint.config["architectures"] == ["BertForMaskedLM"]
    assert not {"pruning_method", "mask_init", "mask_scale"} & set(checkpoint.config)
    assert len(checkpoint.steps) == 2
    assert "12 modules" in checkpoint.steps[0]


def test_the_converted_model_is_the_masked_one(
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    runs_like: Callable[..., None],
) -> None:
    export_movement(tmp_path / "source", model_config, pruned, "topK")
    runs_like(tmp_path / "source", pruned, {"threshold": "0.25"})


def test_scores_of_blocks_open_where_the_config_states_their_size(
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    blocked = {}
    for name, tensor in untied.items():
        if tensor.ndim == 2 and ".layer." in name:
            rows, cols = tensor.shape[0] // 8, tensor.shape[1] // 4
            kept = (torch.arange(rows * cols) % 2 == 0).view(rows, cols)
            kept = kept.repeat_interleave(8, 0).repeat_interleave(4, 1)
            tensor = torch.where(kept, tensor, 0)
        blocked[name] = tensor
    export_movement(tmp_path, model_config, blocked, "topK", block=(8, 4))
    holds(open_checkpoint(tmp_path, finalise={"threshold": 0.5}), blocked)


def test_files_that_are_masked_already_keep_their_zeros(
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    config = model_config | {"model_type": "masked_bert", "pruning_method": "topK"}
    write_directory(tmp_path, config, pruned)
    checkpoint = open_checkpoint(tmp_path)
    holds(checkpoint, pruned)
    assert checkpoint.steps[0] == "no mask_scores for topK: the weights are masked already"


def published_top_k(scores: Tensor, share: float) -> Tensor:
    """The research code's binarizer, in its own steps (a sort and two assignments)."""
    order = scores.flatten().sort(descending=True, stable=True).indices
    mask = torch.empty(scores.numel(), dtype=torch.bool)
    count = int(share * scores.numel())
    mask[order[count:]], mask[order[:count]] = False, True
    return mask.view(scores.shape)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.57, 1.0])
def test_the_highest_are_those_of_the_published_sort(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(37, 24, generator=generator)
    assert torch.equal(highest(scores, share), published_top_k(scores, share))
    # Many equal scores: as many are kept as without.
    equal = scores.round()
    assert torch.equal(highest(equal, share), published_top_k(equal, share))


def test_at_least_half_a_percent_lies_above_a_threshold() -> None:
    scores = torch.arange(1000.0).view(20, 50) / 1000 - 20  # sigmoid below 1e-8
    kept = above(scores, 0.1, sigmoid=True)
    assert int(kept.sum()) == int(0.005 * 1000) + 1
    assert kept.flatten()[-6:].all()
    assert int(above(scores, -19.5, sigmoid=False).sum()) == 499
    assert int(above(scores + 20, 0.6, sigmoid=True).sum()) == 594  # scores above log(1.5)


def test_l0_gates_are_real_and_clamped() -> None:
    gates = l0_gates(torch.tensor([-10.0, -2.4, 0.0, 1.0, 2.4, 10.0]))
    assert gates[0] == 0
    assert gates[1] == 0
    assert torch.allclose(gates[2:4], torch.tensor([0.5, 0.7772704]))
    assert (gates[4:] == 1).all()


def test_an_l0_gate_between_0_and_1_scales_the_weight(
    pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_movement(tmp_path, model_config, pruned, "l0")
    tensors = torch.load(tmp_path / "pytorch_model.bin")
    tensors[f"{LAYER}.mask_scores"] = torch.zeros(48, 32)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    weight = open_checkpoint(tmp_path).tensors[f"{LAYER}.weight"]
    assert torch.allclose(weight, tensors[f"{LAYER}.weight"] * 0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", list(THRESHOLDS))
def test_the_threshold_is_asked_for(
    method: str, pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_movement(tmp_path, model_config, pruned, method)
    with pytest.raises(CheckpointError, match=r"config\.json does not say .*--finalise threshold="):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="expected a number from"):
        open_checkpoint(tmp_path, finalise={"threshold": "nan"})


def test_l0_takes_no_threshold(
    pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_movement(tmp_path, model_config, pruned, "l0")
    with pytest.raises(CheckpointError, match="threshold means nothing"):
        open_checkpoint(tmp_path, finalise={"threshold": 0.1})


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        ({f"{LAYER}.mask_scores": None}, {}, f"differing: {LAYER}"),
        ({"bert.pooler.dense.mask_scores": torch.ones(32, 32)}, {}, "differing: bert.pooler"),
        ({f"{LAYER}.mask_scores": torch.ones(48, 1)}, {}, r"got \[48, 1\].*nn_pruning"),
        ({}, {"mask_block_rows": "a"}, "expected integers as mask_block_rows .* got 'a' and 1"),
        ({}, {"mask_block_cols": [4]}, "expected integers as mask_block_rows"),
        ({}, {"mask_block_rows": 8}, r"blocks? of 8x1 weights.*got \[32, 32\]"),
        ({f"{LAYER}.mask_scores": torch.full((48, 32), torch.nan)}, {}, "mask_scores: .* finite"),
        ({f"{LAYER}.ampere_permut_scores": torch.ones(32, 12, 6)}, {}, "2:4 patterns"),
        ({}, {"ampere_pruning_method": "annealing"}, "2:4 patterns"),
        ({}, {"shuffling_method": "annealing"}, "shuffled dimensions"),
        ({}, {"pruning_method": "uniqueness"}, "expected one of topK"),
        ({}, {"pruning_method": None}, "--finalise pruning_method=topK"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    change: dict[str, Tensor | None],
    config: dict[str, Any],
    said: str,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    export_movement(tmp_path, model_config, pruned, "topK")
    tensors = torch.load(tmp_path / "pytorch_model.bin") | change
    torch.save({n: t for n, t in tensors.items() if t is not None}, tmp_path / "pytorch_model.bin")
    written = json.loads((tmp_path / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path, finalise={"threshold": 0.25}).tensors[f"{LAYER}.weight"]


def test_the_method_can_be_said(
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    export_movement(tmp_path, model_config, pruned, "topK")
    (tmp_path / "config.json").write_text(json.dumps(model_config))
    answers = {"pruning_method": "topK", "threshold": 0.25}
    holds(open_checkpoint(tmp_path, finalise=answers), pruned)


def test_a_weight_that_is_nan_is_not_masked_by_its_magnitude(
    pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_movement(tmp_path, model_config, pruned, "magnitude")
    tensors = torch.load(tmp_path / "pytorch_model.bin")
    tensors[f"{LAYER}.weight"][2, 7] = torch.nan
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path, finalise={"threshold": 0.25})
    with pytest.raises(CheckpointError, match=r"weight: expected finite .* nan at \[2, 7\]"):
        checkpoint.tensors[f"{LAYER}.weight"]
