"""Packed layers in the place of a model's linear layers, before transformers loads the tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...formats import FORMATS
from ...layers import Linear
from ...layers.module import PackedModule
from ...spec import LinearSpec
from ...store import FormatError
from ...store.reading import check_stored
from ...store.section import Section, parse_section
from ...store.weights import Entry, read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PendingLinear(Linear):
    """A packed layer on the meta device, whose tensors the loader sets one by one."""

    # The spec is known from config.json; the loader must not look for it among the tensors.
    get_extra_state = nn.Module.get_extra_state

    def __init__(
        self, name: str, dense: nn.Linear, spec: LinearSpec, parts: Mapping[str, Entry]
    ) -> None:
        """Args: module's name, the layer it replaces, its spec, its tensors in the file."""
        PackedModule.__init__(self)  # Linear's own checks a weight that is there
        self.out_features, self.in_features = spec.shape
        self.backend = "auto"
        self.name = name
        tensors = {
            part: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            for part, entry in parts.items()
        }
        bias = None if dense.bias is None else dense.bias.detach()
        packed = FORMATS[spec.structure.kind](spec=spec, **tensors)
        self._start(packed, bias, dense.weight.dtype)

    def finished(self) -> Linear:
        """The layer with the tensors that have come, checked as every packed weight is."""
        try:
            return Linear(self.packed, self.bias, dtype=self._marker.dtype, name=self.name)
        except ValueError as error:
            raise FormatError(
                f"{self.name}.{error}; the file is damaged: fetch or convert it again"
            ) from None


def insert_layers(model: PreTrainedModel, section: Any, files: Sequence[str | Path] | None) -> None:
    """Replace the linear layers that a packed directory describes by pending ones, in place.

    Args:
        model: skeleton on the meta device.
        section: "sparse_runtime" of config.json.
        files: the safetensors files that are going to be loaded.

    Raises:
        ValueError: section, file and model do not fit each other. Nothing is ever initialized
            here: each tensor that the model needs must be in the file.
    """
    described = parse_section(section)
    if described.attention:
        raise ValueError(
            f"{sorted(described.attention)[0]}: its attention is quantized, and transformers' own "
            "attention would multiply floats; open the directory with SparseModel.from_pretrained"
        )
    if described.absent or described.head_size is not None:
        raise ValueError(
            "the model's layers lack halves, or their heads are of another size than config.json "
            "says, which transformers' own layers cannot run; open the directory with "
            "SparseModel.from_pretrained"
        )
    entries = _read_entries(files, described)
    prefix = model.base_model_prefix
    modules = dict(model.named_modules())
    homeless = []
    for stored, spec in described.layers.items():
        name = _place(stored, prefix, modules)
        if name is None:
            homeless.append(stored)
            continue
        _check_layer(name, modules[name], spec, has_bias=f"{stored}.bias" in entries)
        parts = FORMATS[spec.structure.kind].tensor_names(spec)
        pending = PendingLinear(
            name, modules[name], spec, {part: entries[f"{stored}.{part}"] for part in parts}
        )
        model.set_submodule(name, pending)
    _refuse_homeless(model, homeless, described)
    _refuse_missing(model, entries)


def finish_layers(model: PreTrainedModel) -> None:
    """Replace pending layers by ones that run, in place.

    Raises:
        ValueError: a tensor holds what no packer writes; names it.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, PendingLinear):
            model.set_submodule(name, module.finished().train(module.training))


def _read_entries(files: Sequence[str | Path] | None, section: Section) -> dict[str, Entry]:
    """Names and shapes of all stored tensors, exactly those of the section."""
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        raise ValueError(
            f"a packed model loads from its safetensors file, got {files}; name its directory in "
            "from_pretrained"
        )
    entries: dict[str, Entry] = {}
    for file in files:
        entries |= read_header(Path(file))
    check_stored(Path(files[0]), set(entries), section)
    return entries


def _place(stored: str, prefix: str, names: Container[str]) -> str | None:
    """What a model calls a stored name: the same with or without the base model's prefix."""
    for name in (stored, stored.removeprefix(f"{prefix}."), f"{prefix}.{stored}"):
        if name in names:
            return name
    return None


def _check_layer(name: str, dense: nn.Module, spec: LinearSpec, *, has_bias: bool) -> None:
    if not isinstance(dense, nn.Linear):
        raise ValueError(
            f"{name}: packed as a linear layer, but the model has a {type(dense).__name__} there; "
            "open the directory with the class that its config.json names"
        )
    shape = (dense.out_features, dense.in_features)
    if spec.shape != shape:
        raise ValueError(
            f"{name}: expected a packed weight {list(shape)}, as config.json's sizes ask, got "
            f"{list(spec.shape)}; a model that lost heads or neurons opens with "
            "SparseModel.from_pretrained, and crop='none' in convert keeps them"
        )
    if has_bias and dense.bias is None:
        raise ValueError(f"{name}.bias: stored, but the model's layer has none")


def _refuse_homeless(model: PreTrainedModel, homeless: Iterable[str], section: Section) -> None:
    """Raise ValueError for layers without a place, except another task's head."""
    prefix = f"{model.base_model_prefix}."
    headed = any(name.startswith(prefix) for name in section.layers)
    lost = [name for name in homeless if not headed or name.startswith(prefix)]
    if lost:
        raise ValueError(
            f"{type(model).__name__} has no place for the packed layers {_some(lost)}; open the "
            "directory with its own config.json"
        )


def _refuse_missing(model: PreTrainedModel, entries: Iterable[str]) -> None:
    """Raise ValueError where transformers would make weights up."""
    needed = set(model.state_dict())
    found = {_place(stored, model.base_model_prefix, needed) for stored in entries}
    _drop_missing_pooler(model, found)
    needed = set(model.state_dict())
    for one, other in model.all_tied_weights_keys.items():
        if found & {one, other}:
            found |= {one, other}
    rebuilt = model._keys_to_ignore_on_load_missing or ()
    missing = sorted(
        name for name in needed - found if not any(re.search(pattern, name) for pattern in rebuilt)
    )
    if missing:
        raise ValueError(
            f"{type(model).__name__} needs tensors that the packed model does not hold: "
            f"{_some(missing)}. Weights are never made up: open the directory with the class that "
            "its config.json names under architectures, or convert a checkpoint that has them"
        )


def _drop_missing_pooler(model: PreTrainedModel, found: Iterable[str | None]) -> None:
    # Base models are built with a pooler that many checkpoints lack. Without it they return None
    # for pooler_output, as SparseModel does.
    has_pooler = isinstance(getattr(model, "pooler", None), nn.Module)
    if has_pooler and not any(name and name.startswith("pooler.") for name in found):
        setattr(model, "pooler", None)  # noqa: B010  # mypy takes every attribute for a module


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
