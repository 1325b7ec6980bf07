"""A path or a hub id -> the directory of a packed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..layers.state import SPEC_KEY
from ..store.directories import read_path
from ..store.errors import FormatError
from ..store.weights import WEIGHTS_FILE, read_header

# What a packed model's directory never holds, and a repository may hold beside one.
_NOT_NEEDED = ["*.bin", "*.pt", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.py"]


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """The local directory of a packed model, downloaded where it is none yet.

    Raises:
        TypeError: ``path_or_id`` is no path.
        FileNotFoundError: the path does not exist and cannot be a hub id.
        OSError: the hub cannot be reached or has no such repository.
        ValueError: the directory or repository holds an unpacked checkpoint, or a model that was
            saved after ``replace_linears``.
    """
    path = read_path("path_or_id", path_or_id)
    if path.is_dir():
        _check_packed(path / "config.json", str(path_or_id))
        return path
    text = str(path_or_id)
    if isinstance(path_or_id, Path) or path.exists() or not _may_be_hub_id(text):
        raise FileNotFoundError(
            f"{path}: expected the directory of a packed model or a hub id such as 'owner/name'"
        )
    where = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    return _download(text, where)


def _download(hub_id: str, where: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # The small file first: an unpacked repository is refused before its weights are fetched.
        config = hf_hub_download(hub_id, "config.json", **where)
        _check_packed(Path(config), hub_id)
        return Path(snapshot_download(hub_id, ignore_patterns=_NOT_NEEDED, **where))
    except (OSError, HfHubHTTPError) as error:
        raise OSError(
            f"{hub_id}: no directory of that name, nor could it be read from the hub: {error}"
        ) from error


def _may_be_hub_id(text: str) -> bool:
    # Both are public, though the package does not list them for type checkers.
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        HFValidationError,
        validate_repo_id,
    )

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _check_packed(config: Path, source: str) -> None:
    """Refuse an unpacked checkpoint; every other fault is the store's to describe."""
    try:
        data = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return
    if not (isinstance(data, dict) and "model_type" in data and "sparse_runtime" not in data):
        return
    if _is_replaced(config.with_name(WEIGHTS_FILE)):
        raise ValueError(
            f"{source}: this is a model saved after sparse_runtime.replace_linears, whose "
            "config.json does not describe its packed layers; load the float checkpoint with "
            "quantization_config=sparse_runtime.SparseRuntimeConfig() and save that "
            "(docs/integrations.md), or convert the float checkpoint"
        )
    raise ValueError(
        f"{source}: this is an unpacked checkpoint; pack it first with "
        f"`sparse-runtime convert {source} OUT_DIR` and load OUT_DIR"
    )


def _is_replaced(weights: Path) -> bool:
    """Whether layers are stored as in a state dict (docs/linear.md)."""
    try:
        names = read_header(weights)
    except FormatError:
        return False
    layers = [name.removesuffix(f".{SPEC_KEY}") for name in names if name.endswith(f".{SPEC_KEY}")]
    return any(f"{layer}.values" in names for layer in layers)
