"""sparse-runtime info"""

from __future__ import annotations

from ..options import Debug, Json
from ..output import show


def info(as_json: Json = False, debug: Debug = False) -> None:
    """Show versions, processor, kernels and GPUs, and why anything is missing."""
    from ... import info as gather

    show(gather(), as_json)
