"""Hugging Face directories whose model.safetensors is cut into shards with an index."""

from __future__ import annotations

from ..containers import SafetensorsFile, Shards
from .base import Reader, has_file, read_weight_map

_INDEX = "model.safetensors.index.json"

READER = Reader(
    layout="hugging_face: model.safetensors in shards",
    recognise=has_file(_INDEX),
    open=lambda directory: Shards(directory, read_weight_map(directory, _INDEX), SafetensorsFile),
)
