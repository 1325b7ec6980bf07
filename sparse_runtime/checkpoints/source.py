"""Where a checkpoint lies: a local directory, or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .hub import download
from .options import Options
from .readers import inside_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def locate(
    source: str | Path,
    *,
    finalise: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local directory of a checkpoint, downloaded first where ``source`` is a hub id.

    A directory that exists wins over a hub id of the same spelling, as in transformers.

    Args:
        source: a directory, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".
        finalise: as :func:`~sparse_runtime.checkpoints.open_checkpoint` takes it; hub only, its
            ``file`` is fetched instead of the weights that transformers reads.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Raises:
        CheckpointError: nothing is there, or it cannot be downloaded.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected a directory or a hub id, got {type(source).__name__}")
    if not str(source).strip():
        raise CheckpointError("source: expected a directory or a hub id, got an empty string")
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{source}: expected the directory of a checkpoint, got a file; pass the directory "
            "that holds it together with config.json"
        )
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source}: no such directory, and this is not a hub id ('name' or 'owner/name'); "
            "check the path"
        )
    return download(
        source,
        file=Options(finalise).get("file", inside_path),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )


def source_name(source: str | Path, directory: Path) -> str:
    """A hub id as given, or the name of a local directory: reports and files carry no paths."""
    return directory.resolve().name if Path(source).expanduser().is_dir() else str(source)
