"""Encoders: the forward pass written once, families and heads as data (docs/encoders.md)."""

from __future__ import annotations

from .model import SparseModel

__all__ = ["SparseModel"]
