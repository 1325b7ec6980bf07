"""Which directory a name stands for at the moment."""

from __future__ import annotations

from pathlib import Path


def identity(directory: Path) -> tuple[int, int, int] | None:
    """What tells the directory under a name from any that replaces it; None where there is none.

    The time is there because file systems give the inode of a removed directory to the next one.
    """
    try:
        status = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
