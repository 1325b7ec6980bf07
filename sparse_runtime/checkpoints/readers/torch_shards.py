"""Hugging Face directories whose pytorch_model.bin is cut into shards with an index."""

from __future__ import annotations

from ..containers import Shards, TorchFile
from .base import Reader, has_file, read_weight_map

_INDEX = "pytorch_model.bin.index.json"

READER = Reader(
    layout="hugging_face: pytorch_model.bin in shards",
    recognise=has_file(_INDEX),
    open=lambda directory: Shards(directory, read_weight_map(directory, _INDEX), TorchFile),
)
