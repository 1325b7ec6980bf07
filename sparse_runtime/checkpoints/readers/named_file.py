"""One file of a directory that the user names, opened by its ending."""

from __future__ import annotations

from pathlib import Path

from ..containers import SafetensorsFile, TorchFile
from ..errors import CheckpointError, listed
from .base import Reader
from .onnx_file import OnnxFile, onnx_files

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ENDINGS = (".safetensors", *_PICKLES, ".onnx")
"""What a named file's name may end in."""


def inside_path(value: object) -> str:
    """Reads the ``file`` option: a file name, or a relative path that stays inside the directory.

    Raises:
        ValueError: it leads out of the directory, or has an ending that is not read.
    """
    # Links are followed: the cache of the hub is made of them.
    parts = value.split("/") if isinstance(value, str) else []
    if not parts or not all(_is_plain(part) for part in parts):
        raise ValueError("expected the name of a file in the checkpoint's directory, or below it")
    if not parts[-1].endswith(ENDINGS):
        raise ValueError(f"expected a file that ends in {', '.join(ENDINGS)}")
    return "/".join(parts)


def named_reader(directory: Path, file: str) -> Reader:
    """The reader of one file of a directory.

    Args:
        directory: of the checkpoint.
        file: what :func:`inside_path` gives.

    Raises:
        CheckpointError: it is not there.
    """
    path = directory / file
    if not path.is_file():
        seen = [p.name for p in directory.iterdir() if p.name.endswith(ENDINGS)]
        raise CheckpointError(
            f"{directory.name}: no {file}, which finalise file= names; weights there: "
            f"{listed({*seen, *onnx_files(directory)})}"
        )
    if file.endswith(".onnx"):
        return Reader(f"hugging_face: {file}", lambda _: None, lambda _: OnnxFile(path))
    opener = SafetensorsFile if file.endswith(".safetensors") else TorchFile
    return Reader(file, lambda _: None, lambda _: opener(path))


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not set(part) & set("\\:\0")
