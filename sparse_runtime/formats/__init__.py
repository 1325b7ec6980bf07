"""Packed weights: one canonical form per structure, exact both ways (docs/formats)."""

from __future__ import annotations

from .base import PackedSize, PackedWeight, check_bias
from .block import BlockWeight
from .compress import Compression, CompressionNote, compress
from .dense import DenseWeight
from .detect import Observation, observe
from .nm import NMWeight
from .packing import FORMATS, from_tensors, pack
from .project import parse_prune, project
from .quantize import cast_values
from .unstructured import UnstructuredWeight

__all__ = [
    "FORMATS",
    "BlockWeight",
    "Compression",
    "CompressionNote",
    "DenseWeight",
    "NMWeight",
    "Observation",
    "PackedSize",
    "PackedWeight",
    "UnstructuredWeight",
    "cast_values",
    "check_bias",
    "compress",
    "from_tensors",
    "observe",
    "pack",
    "parse_prune",
    "project",
]
