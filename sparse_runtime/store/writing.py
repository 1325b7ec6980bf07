"""A packed model -> a directory on disk, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..formats import check_bias
from .companions import companion_files
from .directories import identity, naming, read_path
from .errors import FormatError
from .model import (
    TENSOR_DTYPES,
    PackedModel,
    check_attention,
    check_names,
    packed_names,
    plain_names,
)
from .section import CONFIG_FILE, read_config, write_config
from .weights import METADATA, WEIGHTS_FILE

# How often a writer tries again when others replace the same directory at the same time.
MAX_ATTEMPTS = 100


def save(model: PackedModel, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a packed model; :func:`load` gives it back.

    Everything is checked before the first byte is written. The files are written to a new
    directory beside ``directory`` and reach the disk before it takes that name, so that a crash
    leaves the old model, the new one, or none under the name, and never a part of one.

    Args:
        model: what to write.
        directory: where to; missing parents are made.
        overwrite: replace an existing packed model. Any other directory that is not empty is
            refused all the same.

    Raises:
        FileExistsError: ``directory`` exists and may not be replaced.
        TypeError: config or provenance is not JSON, or a tensor has a type that is not stored.
        ValueError: a name, bias, tied weight or companion file is not sound.
    """
    # A link is followed: what it names is replaced, not the link.
    target = read_path("directory", directory).resolve()
    _check_target(target, overwrite)
    config = write_config(model)
    tensors = _stored_tensors(model)
    companions = {} if model.extra_files is None else companion_files(Path(model.extra_files))
    # Not tempfile: its directories are closed to other users whatever the umask says.
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.mkdir(staging)
    try:
        _write_files(staging, config, tensors, companions)
        _take_name(staging, target, overwrite)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync(target.parent)


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless ``target`` may be written."""
    for _ in range(MAX_ATTEMPTS):
        before = identity(target)
        if before is None:
            return
        try:
            return _check_replaceable(target, overwrite)
        except FileNotFoundError:
            continue
        except FileExistsError:
            # Another writer may have moved the directory away in the middle of the check.
            if identity(target) == before:
                raise
    raise FileExistsError(f"{target}: other writers keep replacing it; choose another directory")


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.is_dir():
        raise FileExistsError(f"{target}: expected a directory or nothing, got a file")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target}: the directory is not empty; choose another, or pass overwrite=True to "
            "replace a packed model"
        )
    try:
        read_config(target)
    except FormatError as error:
        raise FileExistsError(
            f"{target}: only a packed model is ever overwritten, and this is none ({error}); "
            "choose another directory or remove it yourself"
        ) from None


def _stored_tensors(model: PackedModel) -> dict[str, Tensor]:
    """All tensors by stored name, checked, on the CPU."""
    check_names(set(model.linears), set(plain_names(model)), model.aliases)
    check_attention(model.attention, set(model.linears))
    for module, linear in model.linears.items():
        try:
            linear.packed.validate()
        except ValueError as error:
            raise ValueError(f"{module}.{error}") from None
        if f"{module}.bias" in model.tensors:
            raise ValueError(f"{module}.bias: expected it in the packed layer, got it in tensors")
        if linear.bias is not None:
            check_bias(f"{module}.bias", linear.bias, linear.packed.spec.shape[0])
    tensors = packed_names(model) | plain_names(model)
    for name, tensor in tensors.items():
        if tensor.dtype not in TENSOR_DTYPES.values() or tensor.layout != torch.strided:
            raise TypeError(
                f"{name}: expected a plain tensor of {', '.join(TENSOR_DTYPES)}, got "
                f"{tensor.dtype} ({tensor.layout})"
            )
        if tensor.is_meta:
            raise TypeError(f"{name}: expected a tensor with data, got one on the meta device")
    _check_stored_once(model.tensors)
    return _separated(tensors)


def _check_stored_once(tensors: dict[str, Tensor]) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            raise ValueError(
                f"{name}: the same memory as {seen[key]}; store a tied weight once and name the "
                "other in aliases"
            )
        seen[key] = name


def _separated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own, as safetensors wants it."""
    separated: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separated[name] = tensor
    return separated


def _write_files(
    staging: Path,
    config: bytes,
    tensors: dict[str, Tensor],
    companions: dict[PurePosixPath, Path],
) -> None:
    """The configuration comes last: a directory without it is never taken for a model."""
    save_file(tensors, staging / WEIGHTS_FILE, metadata=METADATA)
    for relative, source in companions.items():
        (staging / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, staging / relative)
    (staging / CONFIG_FILE).write_bytes(config)
    # safetensors closes its file to other users; the umask, as on every other file, decides.
    shutil.copymode(staging / CONFIG_FILE, staging / WEIGHTS_FILE)
    for path in sorted(staging.rglob("*"), reverse=True):
        _sync(path)
    _sync(staging)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_name(staging: Path, target: Path, overwrite: bool) -> None:
    """Rename ``staging`` to ``target``, moving an old model aside first and removing it last."""
    for _ in range(MAX_ATTEMPTS):
        _check_target(target, overwrite)
        aside = target.parent / f".{target.name}.{uuid.uuid4().hex}.old"
        moved = overwrite and _move_aside(target, aside)
        try:
            done = _move_in(staging, target)
        except BaseException:
            if moved:
                _move_in(aside, target)
            raise
        if moved:
            # Where another writer has taken the name meanwhile, its model is the newer one.
            shutil.rmtree(aside, ignore_errors=True)
        if done:
            return
    raise FileExistsError(f"{target}: other writers keep replacing it; choose another directory")


def _move_aside(target: Path, aside: Path) -> bool:
    """False where there is nothing to move."""
    try:
        os.rename(target, aside)
    except FileNotFoundError:
        return False
    return True


def _move_in(source: Path, target: Path) -> bool:
    """False where a directory that is not empty has the name."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
