"""An opened checkpoint: its config and its tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import read_config
from .containers import Container
from .errors import CheckpointError, listed
from .foreign import refuse_foreign
from .naming import is_ignored_buffer, normalise
from .readers import find_reader
from .source import locate
from .tied import find_aliases

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class CheckpointTensors(Mapping[str, Tensor]):
    """Tensors by name; the data is read, and checked to be finite, at each look-up."""

    def __init__(self, container: Container, stored: Mapping[str, str]) -> None:
        self._container = container
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._container.load(self._stored[name])
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            place = [int(i) for i in (~finite).nonzero()[0]]
            raise CheckpointError(
                f"{name}: expected finite numbers, got {tensor[tuple(place)].item()} at {place}; "
                "the training run that wrote it has diverged, or the file is damaged"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        # The inherited one would read the tensor.
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, without reading it."""
        return self._container.shape(self._stored[name])

    def dtype(self, name: str) -> str:
        """dtype of a tensor as torch spells it ("float32"), without reading it."""
        return self._container.dtype(self._stored[name])

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor's data, without reading it."""
        return torch.Size(self.shape(name)).numel() * _BYTES[self.dtype(name)]


@dataclass
class Checkpoint:
    """A float checkpoint, opened.

    Attributes:
        directory: where it lies, tokenizer files included.
        config: the fields of config.json.
        tensors: float32, bfloat16 or float16 tensors by today's name, each stored once.
        aliases: other name of a tied or shared tensor -> its name in ``tensors``.
        layout: which reader opened it, such as "hugging_face: model.safetensors".
        renamed: name in the file -> name in ``tensors``, where they differ.
        dropped: names in the file of buffers that carry no information.
    """

    directory: Path
    config: dict[str, Any]
    tensors: CheckpointTensors
    aliases: dict[str, str]
    layout: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Open a float checkpoint in a Hugging Face layout, from a directory or the hub.

    Weights are not read before they are asked for. The other arguments are those of
    ``from_pretrained`` in transformers and apply to the hub.

    Raises:
        CheckpointError: there is no checkpoint, its files are damaged, or its layout is not
            supported; the message names the file or tensor and what to do.
    """
    directory = locate(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    config = read_config(directory)
    reader = find_reader(directory)
    container = reader.open(directory)
    names = container.names()
    refuse_foreign(directory.name, names)
    buffers = [name for name in names if is_ignored_buffer(name, container.dtype(name))]
    normal = normalise(names, buffers)
    _require_floats(directory.name, container, normal.stored)
    if not normal.stored:
        raise CheckpointError(f"{directory.name}: the weights file holds no tensors")
    aliases = find_aliases(
        CheckpointTensors(container, normal.stored), _shared(container, normal.stored)
    )
    kept = {name: old for name, old in normal.stored.items() if name not in aliases}
    return Checkpoint(
        directory=directory,
        config=config,
        tensors=CheckpointTensors(container, kept),
        aliases=aliases,
        layout=reader.layout,
        renamed=normal.renamed,
        dropped=normal.dropped,
    )


def _shared(container: Container, stored: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of shared storage under the names in use."""
    new = {old: name for name, old in stored.items()}
    groups = [tuple(new[name] for name in group if name in new) for group in container.shared()]
    return [group for group in groups if len(group) > 1]


def _require_floats(where: str, container: Container, stored: Mapping[str, str]) -> None:
    others = {
        f"{name} ({container.dtype(old)})"
        for name, old in stored.items()
        if container.dtype(old) not in _BYTES
    }
    if others:
        raise CheckpointError(
            f"{where}: expected float32, bfloat16 or float16 tensors, got {listed(others)}; save "
            "float64 weights as float32, and convert quantized ones from the float checkpoint"
        )
