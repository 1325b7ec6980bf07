"""What goes to stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_OF_FILES = 120


def console() -> Console:
    """A console on stdout; in files and pipes as wide as a table wants, not 80 columns."""
    from rich.console import Console

    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fixed else _WIDTH_OF_FILES, soft_wrap=False)


def show(report: Any, as_json: bool) -> None:
    """Print a report that has ``to_dict()`` and ``__rich__()``."""
    if as_json:
        print(to_json(report.to_dict(), indent=2))
    else:
        console().print(report)


def to_json(data: Any, indent: int | None = None) -> str:
    """ASCII JSON, valid everywhere: NaN and infinity become null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def quiet_transformers(*, bars: bool = True) -> None:
    """Keep transformers' reports of what it loads off the terminal; without ``bars`` all of it.

    Where stderr is no terminal there are no bars either.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    if bars and sys.stderr.isatty():
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()
