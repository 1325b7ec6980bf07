"""Writes what movement pruning, soft movement pruning and CAP save: dense weights and scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import fill_zeros, is_pruned, write_directory


def export_movement(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    method: str,
    *,
    block: tuple[int, int] = (1, 1),
) -> None:
    """Write dense weights, the scores that give the zeros back, and the masked model's config.

    Args:
        directory: to write.
        config: of the plain BERT.
        tensors: of the pruned model. Its layers' matrices have the share of zeros that a later
            ``threshold`` says (for "sigmoied_threshold" any), in whole blocks.
        method: "topK", "sigmoied_threshold", "threshold", "l0", or "magnitude", which has no
            scores and smaller weights where the model has zeros.
        block: rows and columns of one score.
    """
    generator = torch.Generator().manual_seed(0)
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        written[name] = tensor
        if not is_pruned(name, tensor):
            continue
        noise = fill_zeros(tensor, generator)
        if method == "magnitude":
            least = tensor[tensor != 0].abs().min()
            small = noise / noise.abs().max() * least * 0.9
            written[name] = torch.where(tensor == 0, small, tensor)
            continue
        written[name] = noise
        # One unit of spread between pruned and kept, on both sides of every threshold in use.
        kept = tensor[:: block[0], :: block[1]] != 0
        spread = torch.rand(kept.shape, generator=generator)
        scores = torch.where(kept, 3 + spread, -3 - spread)
        written[name.removesuffix("weight") + "mask_scores"] = scores
    write_directory(directory, _masked_config(config, method, block), written)


def export_scores(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    method: str,
    scores: Mapping[str, Tensor],
    *,
    block: tuple[int, int] = (1, 1),
) -> None:
    """Write the weights and scores of a training run as they are.

    Args:
        directory: to write.
        config: of the plain BERT.
        tensors: of the model, its weights dense.
        method: "topK", "sigmoied_threshold" or "threshold".
        scores: by the name of the layer.
        block: rows and columns of one score.
    """
    written = {f"{module}.mask_scores": one for module, one in scores.items()}
    write_directory(directory, _masked_config(config, method, block), {**tensors, **written})


def _masked_config(
    config: Mapping[str, Any], method: str, block: tuple[int, int]
) -> dict[str, Any]:
    classes = [f"Masked{name}" for name in config.get("architectures", ())]
    masked = dict(config) | {"model_type": "masked_bert", "architectures": classes}
    masked |= {"pruning_method": method, "mask_init": "constant", "mask_scale": 0.0}
    if block != (1, 1):
        masked |= {"mask_block_rows": block[0], "mask_block_cols": block[1]}
    return masked
