"""Files that keep what was measured on this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The package's folder in the user's cache.

    Raises:
        OSError: XDG_CACHE_HOME is not set and the user has no home.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user id that the system does not know, as in containers
        raise FileNotFoundError("no home directory: set XDG_CACHE_HOME") from error
    return root / "sparse_runtime"


def write_whole(path: Path, text: str) -> None:
    """Atomically: several processes may measure at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
