"""Hugging Face directories with all weights in one model.safetensors."""

from __future__ import annotations

from ..containers import SafetensorsFile
from .base import Reader, has_file

_FILE = "model.safetensors"

READER = Reader(
    layout="hugging_face: model.safetensors",
    recognise=has_file(_FILE),
    open=lambda directory: SafetensorsFile(directory / _FILE),
)
