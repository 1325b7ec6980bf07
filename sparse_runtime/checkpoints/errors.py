"""What goes wrong with a checkpoint, in one error class, and how its messages list names."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or represented; the message says what to do."""


class AlreadyPackedError(CheckpointError):
    """The directory holds a packed sparse-runtime model instead of a checkpoint to convert."""


def listed(names: Iterable[str], limit: int = 4) -> str:
    """ "a, b, c, d and 7 more", sorted; "none" for nothing."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit])
    rest = len(ordered) - limit
    return (f"{shown} and {rest} more" if rest > 0 else shown) or "none"
