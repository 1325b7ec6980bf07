"""Packed models as directories: what they hold, how they are written, read and measured."""

from __future__ import annotations

from .errors import FormatError
from .model import PackedLinear, PackedModel
from .reading import load
from .size import ScopeSize, SizeReport, size_report
from .writing import save

__all__ = [
    "FormatError",
    "PackedLinear",
    "PackedModel",
    "ScopeSize",
    "SizeReport",
    "load",
    "save",
    "size_report",
]
