"""Writes what NxMiFormer's training saves: unprojected weights, and their configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .directory import is_pruned, write_directory


def export_nxm(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kind: str,
    file: Path,
    **args: int,
) -> None:
    """Write a plain checkpoint, and one entry a matrix of its layers as a JSON file.

    Args:
        directory: to write.
        config: of the model.
        tensors: of the model before projection.
        kind: "type" of the entries, such as "NxM" or "NxM_ADMM_STE".
        file: where the JSON goes.
        args: "args" of the entries: N, M, precision, chunk_size, norm, groups.
    """
    write_directory(directory, config, tensors)
    modules = [name.removesuffix(".weight") for name, t in tensors.items() if is_pruned(name, t)]
    entries = {module: {"type": kind, "args": args} for module in modules}
    file.write_text(json.dumps(entries, indent=4), encoding="utf-8")
