"""Names of directories: as arguments, which one each stands for, and new ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_path(argument: str, value: Any) -> Path:
    """An argument that names a directory.

    Args:
        argument: its name, for errors.
        value: of the argument. An empty one, which pathlib takes for the current directory, is
            most often a variable that was never set.

    Raises:
        TypeError: it is no path.
        ValueError: it is empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{argument}: expected a path, got {type(value).__name__}")
    if not str(value).strip():
        raise ValueError(f"{argument}: expected a path, got an empty string")
    return Path(value)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Make what creates ``target`` under another name first fail under this one.

    Raises:
        OSError: of the kind that was raised inside.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot be written: {error.strerror}"
        raise OSError(error.errno, text, str(target)) from error


def identity(directory: Path) -> tuple[int, int, int] | None:
    """What tells the directory under a name from any that replaces it; None where there is none.

    The time is there because file systems give the inode of a removed directory to the next one.
    """
    try:
        status = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
