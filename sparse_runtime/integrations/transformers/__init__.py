"""Packed models in transformers: importing this registers the quantization method.

Afterwards ``AutoModel.from_pretrained``, pipelines and sentence-transformers open a directory that
``sparse_runtime.convert`` wrote and run its layers packed. ``import sparse_runtime`` imports this
module when transformers loads its quantizers; see docs/integrations.md.
"""

from __future__ import annotations

from .config import SparseRuntimeConfig
from .quantizer import SparseRuntimeHfQuantizer

__all__ = ["SparseRuntimeConfig", "SparseRuntimeHfQuantizer"]
