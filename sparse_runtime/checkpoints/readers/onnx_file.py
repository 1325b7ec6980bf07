"""Directories with an ONNX graph, alone or beside other weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, listed
from ..onnx_graph import Graph, read_graph
from .base import Reader


class OnnxFile:
    """One ONNX file.

    Attributes:
        graph: what it computes.
    """

    def __init__(self, path: Path) -> None:
        self.graph: Graph = read_graph(path)

    def names(self) -> list[str]:
        return list(self.graph.leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.leaves[name].shape

    def dtype(self, name: str) -> str:
        return self.graph.leaves[name].dtype

    def load(self, name: str) -> Tensor:
        return self.graph.leaves[name].load()

    def shared(self) -> list[tuple[str, ...]]:
        return []

    def metadata(self) -> dict[str, str]:
        return {}


def onnx_files(directory: Path) -> list[str]:
    """ONNX files of a directory and of its folder ``onnx``, where hub repositories keep several."""
    found = [*directory.glob("*.onnx"), *directory.glob("onnx/*.onnx")]
    return sorted(path.relative_to(directory).as_posix() for path in found)


def _recognise(directory: Path) -> str | None:
    return None if onnx_files(directory) else "no model.onnx"


def _open(directory: Path) -> OnnxFile:
    files = onnx_files(directory)
    if len(files) > 1:
        example = next((name for name in files if "quant" in name), files[0])
        raise CheckpointError(
            f"{directory.name}: {len(files)} ONNX files ({listed(files)}), of which one is wanted; "
            f"name it with --finalise file={example}"
        )
    return OnnxFile(directory / files[0])


READER = Reader(layout="hugging_face: ONNX graph", recognise=_recognise, open=_open)
