"""A directory on disk -> a packed model, with every check of docs/formats/store.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..formats import FORMATS, check_bias, from_tensors
from ..spec import LinearSpec
from .directories import identity, read_path
from .errors import FormatError
from .model import PackedLinear, PackedModel
from .section import Section, read_config
from .weights import WEIGHTS_FILE, map_tensors, read_header


def load(directory: str | os.PathLike[str]) -> PackedModel:
    """Read a packed model that :func:`save` wrote.

    Tensors stay mapped from the file: pages are read when they are used, and are shared with other
    processes that map the same file.

    Args:
        directory: holds config.json, model.safetensors and, often, tokenizer files.

    Raises:
        FormatError: anything in it is missing, damaged, of a newer format, or not what a packer
            writes.
    """
    directory = read_path("directory", directory)
    if not directory.is_dir():
        raise FormatError(
            f"{directory}: expected the directory of a packed model, got none; name the one that "
            "`sparse-runtime convert` wrote"
        )
    config, section, tensors = _read_files(directory)
    path = directory / WEIGHTS_FILE
    try:
        linears = {
            module: _linear(module, spec, tensors)
            for module, spec in sorted(section.layers.items())
        }
        _check_bools(tensors)
    except ValueError as error:
        raise FormatError(
            f"{path}: {error}; the file is damaged: fetch or convert it again"
        ) from None
    owned = {f"{module}.bias" for module in linears}
    return PackedModel(
        config=config,
        linears=linears,
        tensors={name: tensors[name] for name in sorted(section.tensors - owned)},
        aliases=section.tied,
        absent=section.absent,
        head_size=section.head_size,
        provenance=section.provenance,
        # Read later, when a relative path may lead elsewhere.
        extra_files=directory.resolve(),
        attention=section.attention,
    )


def _read_files(directory: Path) -> tuple[dict[str, Any], Section, dict[str, Tensor]]:
    """(Hugging Face fields, section, all tensors) of one and the same model."""
    # save() replaces a directory as a whole, so another one under the name means that the
    # configuration of one model may have met the weights of another.
    replaced = FormatError(f"{directory}: replaced while it was being read; load it again")
    before = identity(directory)
    path = directory / WEIGHTS_FILE
    try:
        config, section = read_config(directory)
        entries = read_header(path)
        check_stored(path, set(entries), section)
        tensors = map_tensors(path, entries)
    except FileNotFoundError:
        raise replaced from None
    except FormatError:
        if identity(directory) != before:
            raise replaced from None
        raise
    if identity(directory) != before:
        raise replaced
    return config, section, tensors


def check_stored(path: Path, stored: set[str], section: Section) -> None:
    """Raise FormatError unless a file stores the tensors that its section names, and no others."""
    packed = {
        f"{module}.{part}"
        for module, spec in section.layers.items()
        for part in FORMATS[spec.structure.kind].tensor_names(spec)
    }
    expected = packed | section.tensors
    if stored != expected:
        missing, unknown = sorted(expected - stored), sorted(stored - expected)
        raise FormatError(
            f"{path}: expected the tensors that config.json lists, got missing tensors "
            f"{_some(missing)}, unknown tensors {_some(unknown)}; the two files do not belong "
            "together: convert the checkpoint again"
        )


def _some(names: list[str]) -> str:
    shown = [name[:80] for name in names[:8]]
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else str(shown)


def _linear(module: str, spec: LinearSpec, tensors: dict[str, Tensor]) -> PackedLinear:
    names = FORMATS[spec.structure.kind].tensor_names(spec)
    try:
        packed = from_tensors(spec, {name: tensors[f"{module}.{name}"] for name in names})
    except ValueError as error:
        raise ValueError(f"{module}.{error}") from None
    bias = tensors.get(f"{module}.bias")
    if bias is not None:
        check_bias(f"{module}.bias", bias, spec.shape[0])
    return PackedLinear(packed, bias)


def _check_bools(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise ValueError(f"{name}: expected bytes 0 and 1 for booleans, got others")
