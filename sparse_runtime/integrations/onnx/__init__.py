"""Packed models as ONNX graphs (docs/onnx.md)."""

from __future__ import annotations

from .export import export_onnx

__all__ = ["export_onnx"]
