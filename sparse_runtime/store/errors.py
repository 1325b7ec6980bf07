"""The one error that reading a packed model raises."""

from __future__ import annotations


class FormatError(ValueError):
    """A directory is not a packed model that this version reads, or it is damaged.

    The message names the file and the entry or tensor, what was expected, what came, and what to
    do.
    """
