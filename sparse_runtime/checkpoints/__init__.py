"""Foreign checkpoints: find them, recognise their layout, read them (docs/checkpoints.md)."""

from __future__ import annotations

from .checkpoint import Checkpoint, CheckpointTensors, open_checkpoint
from .config import is_packed
from .draft import Recognition
from .errors import AlreadyPackedError, CheckpointError
from .naming import kind_of, natural_key
from .quantized import QuantizedLinear, QuantizedValues
from .source import locate, source_name

__all__ = [
    "AlreadyPackedError",
    "Checkpoint",
    "CheckpointError",
    "CheckpointTensors",
    "QuantizedLinear",
    "QuantizedValues",
    "Recognition",
    "is_packed",
    "kind_of",
    "locate",
    "natural_key",
    "open_checkpoint",
    "source_name",
]
