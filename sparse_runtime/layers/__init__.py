"""Drop-in modules that hold a packed weight and run it."""

from __future__ import annotations

from .linear import Linear
from .replace import replace_linears

__all__ = ["Linear", "replace_linears"]
