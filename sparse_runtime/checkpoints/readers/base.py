"""What a reader of one layout is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import read_json
from ..containers import Container
from ..errors import CheckpointError, listed


@dataclass(frozen=True)
class Reader:
    """Opens checkpoints of one layout.

    Attributes:
        layout: name of the layout in reports.
        recognise: directory -> None where it has this layout, else why it has not.
        open: directory -> its tensors, not read yet.
    """

    layout: str
    recognise: Callable[[Path], str | None]
    open: Callable[[Path], Container]


def has_file(name: str) -> Callable[[Path], str | None]:
    """A ``recognise`` that looks for one file."""
    return lambda directory: None if (directory / name).is_file() else f"no {name}"


def read_weight_map(directory: Path, index_name: str) -> dict[str, str]:
    """Tensor name -> shard of an index file; every shard is there and in the directory itself.

    Raises:
        CheckpointError: the index is damaged, names files elsewhere, or shards are missing.
    """
    weight_map = read_json(directory / index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_name}: expected 'weight_map' with a shard for each tensor")
    shards = list(weight_map.values())
    outside = [str(shard) for shard in shards if not _is_file_name(shard)]
    if outside:
        raise CheckpointError(
            f"{index_name}: expected names of files beside it, got {listed(set(outside))}"
        )
    missing = {shard for shard in shards if not (directory / shard).is_file()}
    if missing:
        raise CheckpointError(
            f"{directory.name}: {index_name} names shards that are missing: {listed(missing)}; "
            "download them too"
        )
    return weight_map


def _is_file_name(shard: object) -> bool:
    return isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & set("/\\\0")
