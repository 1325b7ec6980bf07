"""An opened checkpoint: its config and its tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..spec import QuantizedAttention
from .config import read_config, refuse_compressed
from .containers import Container
from .draft import Draft, LazyTensor, Recognition, check_sizes
from .errors import CheckpointError
from .foreign import refuse_foreign
from .layouts import finalise as finalise_layouts
from .naming import family_of, is_ignored_buffer, normalise
from .numbers import finite
from .options import Options
from .quantized import QuantizedLinear
from .readers import find_reader, inside_path
from .source import locate
from .tied import find_aliases


class CheckpointTensors(Mapping[str, Tensor]):
    """Tensors by name; the data is read, and checked to be finite, at each look-up."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return finite(name, self._tensors[name].load())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        # The inherited one would read the tensor.
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, without reading it."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """dtype of a tensor as torch spells it ("float32"), without reading it."""
        return self._tensors[name].dtype

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor's data, without reading it."""
        return self._tensors[name].nbytes


@dataclass
class Checkpoint:
    """A checkpoint, opened.

    Attributes:
        directory: where it lies, tokenizer files included.
        config: the fields of config.json, without what only its layout needs.
        tensors: float32, bfloat16 or float16 tensors by today's name, each stored once.
        aliases: other name of a tied or shared tensor -> its name in ``tensors``.
        layout: the layouts it has and the reader that opened it, such as
            "torch.nn.utils.prune in hugging_face: model.safetensors".
        linears: layers that the file states in integers, by module name. Their biases are in
            ``tensors``, their weights are not.
        attention: how attention's products are quantized, by layer, such as "encoder.layer.0".
        recognised: each layout, and what showed it.
        steps: what was done to the file's tensors, a line each.
        renamed: name in the file -> name in ``tensors``, where they differ.
        dropped: name of what was left out -> why.
        absent: halves of layers that the network lacks, such as "bert.encoder.layer.3.attention" or
            "bert.encoder.layer.7.ffn"; what is not stated here is never taken for absent.
        head_size: features of an attention head, where hidden size over heads is another number.
    """

    directory: Path
    config: dict[str, Any]
    tensors: CheckpointTensors
    aliases: dict[str, str]
    layout: str
    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    attention: dict[str, QuantizedAttention] = field(default_factory=dict)
    recognised: tuple[Recognition, ...] = ()
    steps: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    head_size: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the files hold the model's own tensors under the names of transformers."""
        return not self.recognised and not self.renamed


def open_checkpoint(
    source: str | Path,
    *,
    finalise: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Open a checkpoint from a directory or the hub, in any layout that docs/checkpoints.md lists.

    Weights are not read before they are asked for.

    Args:
        source: a directory or a hub id.
        finalise: what the files leave open, by the names that errors and docs/checkpoints.md give.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Raises:
        CheckpointError: there is no checkpoint, its files are damaged, or its layout is not
            supported or leaves something open; the message names the file or tensor and what to do.
    """
    options = Options(finalise)
    directory = locate(
        source,
        finalise=finalise,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    config = read_config(directory, options)
    reader = find_reader(directory, options.get("file", inside_path))
    container = reader.open(directory)
    names = container.names()
    buffers = [name for name in names if is_ignored_buffer(name, container.dtype(name))]
    normal = normalise(names, buffers)
    lazy = {name: _lazy(container, old) for name, old in normal.stored.items()}
    for name in lazy:
        # Layouts count rows and columns of these; of observers and states some are empty.
        if name.endswith((".weight", ".bias")):
            check_sizes(name, lazy[name].shape)
    draft = Draft(
        directory=directory,
        config=dict(config),
        container=container,
        tensors=dict(lazy),
        options=options,
        dropped=dict(normal.dropped),
    )
    if normal.holder:
        draft.steps.append(f"names without {normal.holder!r}, which all of the encoder begin with")
    if config.get("model_type") is None and (family := family_of(lazy)):
        draft.config["model_type"] = family
        draft.steps.append(f"model_type = {family}, as layers are named: config.json has none")
    finalise_layouts(draft)
    draft.options.check_all_read()
    refuse_compressed(draft.where, draft.config)
    refuse_foreign(draft.where, draft.tensors)
    _require_floats(draft)
    # What a layout has computed shares nothing any more, though it may have its old name.
    stored = {new: old for new, old in normal.stored.items() if draft.tensors.get(new) is lazy[new]}
    shared = _shared(container, stored, draft.tensors)
    aliases = find_aliases(CheckpointTensors(draft.tensors), shared)
    kept = {name: tensor for name, tensor in draft.tensors.items() if name not in aliases}
    return Checkpoint(
        directory=directory,
        config=draft.config,
        tensors=CheckpointTensors(kept),
        aliases=aliases,
        layout=" in ".join([*(found.layout for found in draft.recognised), reader.layout]),
        linears=draft.linears,
        attention=draft.attention,
        recognised=tuple(draft.recognised),
        steps=tuple(draft.steps),
        renamed=normal.renamed,
        dropped=draft.dropped,
        absent=tuple(draft.absent),
        head_size=draft.head_size,
    )


def _lazy(container: Container, name: str) -> LazyTensor:
    return LazyTensor(container.shape(name), container.dtype(name), lambda: container.load(name))


def _shared(
    container: Container, stored: Mapping[str, str], tensors: Mapping[str, LazyTensor]
) -> list[tuple[str, ...]]:
    """Groups of shared storage under the names in use."""
    new = {old: name for name, old in stored.items() if name in tensors}
    groups = [tuple(new[name] for name in group if name in new) for group in container.shared()]
    return [group for group in groups if len(group) > 1]


def _require_floats(draft: Draft) -> None:
    tensors = draft.tensors
    if not tensors and not draft.linears:
        raise CheckpointError(f"{draft.where}: the weights file holds no tensors")
    draft.refuse_others(tensors)
