"""ONNX graphs of encoders: read, taken apart into floats and quantizers, and understood."""

from __future__ import annotations

from .graph import Graph
from .reading import read_graph

__all__ = ["Graph", "read_graph"]
