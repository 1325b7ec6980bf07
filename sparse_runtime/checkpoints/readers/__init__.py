"""Readers, one a layout, in the order in which they are asked."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, listed
from . import onnx_file, safetensors_file, safetensors_shards, torch_file, torch_shards
from .base import Reader
from .named_file import ENDINGS, inside_path, named_reader

__all__ = ["READERS", "Reader", "find_reader", "inside_path"]

# As in transformers: safetensors before pickles, one file before shards.
READERS: tuple[Reader, ...] = (
    safetensors_file.READER,
    safetensors_shards.READER,
    torch_file.READER,
    torch_shards.READER,
    onnx_file.READER,
)

_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    *(".data-00000-of-00001", ".ot", ".tflite"),
)


def find_reader(directory: Path, file: str | None = None) -> Reader:
    """The first reader that recognises the directory.

    Args:
        directory: of the checkpoint.
        file: the weights file to open instead, as :func:`inside_path` gives it.

    Raises:
        CheckpointError: none does; says what each looked for and which weights are there.
    """
    if file is not None:
        return named_reader(directory, file)
    refusals = []
    for reader in READERS:
        reason = reader.recognise(directory)
        if reason is None:
            return reader
        refusals.append(reason)
    seen = [path.name for path in directory.iterdir() if path.name.endswith(_WEIGHTS)]
    raise CheckpointError(
        f"{directory.name}: no weights that can be read ({', '.join(refusals)}); other weights "
        f"there: {listed(seen)}; name one of its safetensors, pickle or ONNX files with --finalise "
        f"file={next((name for name in sorted(seen) if name.endswith(ENDINGS)), 'NAME')}"
    )
