"""Writes models as nn_pruning leaves them: heads cut or zero, neurons zero, ``pruned_heads``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import write_directory


def export_removed_heads(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    pruned: Mapping[int, Sequence[int]],
    *,
    cut: bool,
) -> None:
    """Write BERT's tensors without some heads.

    Args:
        directory: to write.
        config: of the model before.
        tensors: of the model before.
        pruned: heads to remove by layer.
        cut: whether their rows and columns are taken out, or stay as zeros.
    """
    written = dict(tensors)
    size = config["hidden_size"] // config["num_attention_heads"]
    for name in [name for name in written if ".attention." in name and "LayerNorm" not in name]:
        layer = int(name.partition(".layer.")[2].partition(".")[0])
        if name.endswith("output.dense.bias") or not pruned.get(layer):
            continue
        gone = torch.zeros(config["num_attention_heads"], dtype=torch.bool)
        gone[list(pruned[layer])] = True
        gone = gone.repeat_interleave(size)
        tensor = written[name].clone()
        # The output's heads lie in its columns.
        by_head = tensor.t() if name.endswith("output.dense.weight") else tensor
        by_head[gone] = 0
        if cut:
            by_head = by_head[~gone]
            tensor = by_head.t() if name.endswith("output.dense.weight") else by_head
        written[name] = tensor.contiguous()
    listed = {str(layer): sorted(heads) for layer, heads in pruned.items()}
    write_directory(directory, {**config, "pruned_heads": listed}, written)
