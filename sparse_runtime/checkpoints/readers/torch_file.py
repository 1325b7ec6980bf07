"""Hugging Face directories with all weights in one pytorch_model.bin."""

from __future__ import annotations

from ..containers import TorchFile
from .base import Reader, has_file

_FILE = "pytorch_model.bin"

READER = Reader(
    layout="hugging_face: pytorch_model.bin",
    recognise=has_file(_FILE),
    open=lambda directory: TorchFile(directory / _FILE),
)
