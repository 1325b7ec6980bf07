"""Readers, one a layout, in the order in which they are asked."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, listed
from . import safetensors_file, safetensors_shards, torch_file, torch_shards
from .base import Reader

__all__ = ["READERS", "Reader", "find_reader"]

# As in transformers: safetensors before pickles, one file before shards.
READERS: tuple[Reader, ...] = (
    safetensors_file.READER,
    safetensors_shards.READER,
    torch_file.READER,
    torch_shards.READER,
)

_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    *(".data-00000-of-00001", ".ot", ".tflite"),
)


def find_reader(directory: Path) -> Reader:
    """The first reader that recognises the directory.

    Raises:
        CheckpointError: none does; says what each looked for and which weights are there.
    """
    refusals = []
    for reader in READERS:
        reason = reader.recognise(directory)
        if reason is None:
            return reader
        refusals.append(reason)
    seen = [path.name for path in directory.iterdir() if path.name.endswith(_WEIGHTS)]
    raise CheckpointError(
        f"{directory.name}: no weights that can be read ({', '.join(refusals)}); other weights "
        f"there: {listed(seen)}"
    )
