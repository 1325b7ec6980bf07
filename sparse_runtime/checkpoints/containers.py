"""Tensors as they lie in files: a safetensors file, a pickle of torch.save, or shards of either."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, listed

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class Container(Protocol):
    """Named tensors of which shape and dtype are known without reading the data."""

    def names(self) -> list[str]:
        """Names in the order of the file."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of one tensor."""

    def dtype(self, name: str) -> str:
        """Its dtype as torch spells it, such as "float32"."""

    def load(self, name: str) -> Tensor:
        """Its data, memory-mapped where the file allows it."""

    def shared(self) -> list[tuple[str, ...]]:
        """Groups of names that share storage."""

    def metadata(self) -> dict[str, str]:
        """Text by key that the files carry beside the tensors."""


class SafetensorsFile:
    """One safetensors file; the format itself forbids shared storage."""

    def __init__(self, path: Path) -> None:
        _refuse_pointer(path)
        try:
            self._file = safe_open(path, framework="pt")
            self._names = list(self._file.offset_keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path.name}: not a readable safetensors file ({error}); download it again"
            ) from error

    def names(self) -> list[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        written = self._file.get_slice(name).get_dtype()
        if written not in _SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{name}: expected a dtype that torch has, one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}, got {written}; convert the float checkpoint"
            )
        return _SAFETENSORS_DTYPES[written]

    def load(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def shared(self) -> list[tuple[str, ...]]:
        return []

    def metadata(self) -> dict[str, str]:
        return self._file.metadata() or {}


class TorchFile:
    """One file of torch.save, read by the unpickler that creates tensors and nothing else."""

    def __init__(self, path: Path) -> None:
        self._tensors = _checked_state_dict(_unpickle(path), path.name)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def load(self, name: str) -> Tensor:
        return self._tensors[name]

    def shared(self) -> list[tuple[str, ...]]:
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel():
                place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
                groups.setdefault(place, []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def metadata(self) -> dict[str, str]:
        return {}


class Shards:
    """Several files that together hold the tensors of one model."""

    def __init__(
        self, directory: Path, weight_map: dict[str, str], opener: Callable[[Path], Container]
    ) -> None:
        self._files = {file: opener(directory / file) for file in sorted(set(weight_map.values()))}
        self._weight_map = weight_map
        held = {(name, file) for file, shard in self._files.items() for name in shard.names()}
        absent = weight_map.items() - held
        if absent:
            raise CheckpointError(
                f"{directory.name}: the index places tensors in shards that do not hold them: "
                f"{listed(f'{name} in {file}' for name, file in absent)}; download it again"
            )
        unlisted = held - weight_map.items()
        if unlisted:
            raise CheckpointError(
                f"{directory.name}: shards hold tensors that the index does not place there: "
                f"{listed(f'{name} in {file}' for name, file in unlisted)}; download it again"
            )

    def names(self) -> list[str]:
        return [name for shard in self._files.values() for name in shard.names()]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[self._weight_map[name]].shape(name)

    def dtype(self, name: str) -> str:
        return self._files[self._weight_map[name]].dtype(name)

    def load(self, name: str) -> Tensor:
        return self._files[self._weight_map[name]].load(name)

    def shared(self) -> list[tuple[str, ...]]:
        return [group for shard in self._files.values() for group in shard.shared()]

    def metadata(self) -> dict[str, str]:
        merged: dict[str, str] = {}
        for shard in self._files.values():
            merged |= shard.metadata()
        return merged


def load_tensor(path: Path) -> Tensor:
    """The one tensor of a file of ``torch.save``, by the same unpickler as :class:`TorchFile`.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    data = _unpickle(path)
    if not _is_plain(path.name, data):
        raise CheckpointError(f"{path.name}: expected one plain tensor, got {type(data).__name__}")
    assert isinstance(data, Tensor)
    return _resolved(data)


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors by name of a file of ``torch.save``, by the same unpickler; None for a None.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    data = _unpickle(path)
    return None if data is None else _checked_state_dict(data, path.name)


def _unpickle(path: Path) -> object:
    _refuse_pointer(path)
    try:
        # Only the zip form, torch's own since 1.6, can be memory-mapped.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    # Damaged pickles raise nearly anything: UnpicklingError, EOFError, KeyError, RuntimeError ...
    except Exception as error:
        # Text is read as a pickle too, up to its first letter that is no operation.
        unknown = "Unsupported operand" in str(error) and _head(path, 1) != b"\x80"
        if isinstance(error, UnpicklingError) and not unknown:
            raise CheckpointError(
                f"{path.name}: not a file of plain tensors that can be loaded without running code "
                f"from it ({_reason(error)}); load it where you trust it and save its state dict "
                "as safetensors"
            ) from error
        raise CheckpointError(
            f"{path.name}: expected a whole file of torch.save, got one of {path.stat().st_size} "
            f"bytes that is cut off, damaged or something else ({_reason(error)}); download it "
            "again"
        ) from error


_POINTER = b"version https://git-lfs"


def _refuse_pointer(path: Path) -> None:
    if _head(path, len(_POINTER)) == _POINTER:
        raise CheckpointError(
            f"{path.name}: expected weights, got a pointer of Git LFS to them; run git lfs pull "
            "where it was cloned, or download the file itself"
        )


def _head(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError:  # whoever reads the whole file says why
        return b""


def _reason(error: Exception) -> str:
    # torch's text begins with how to load the file all the same; what it did not like comes after.
    text = str(error)
    lines = text.partition("WeightsUnpickler error:")[2].strip() or text.strip()
    return (lines.splitlines() or [type(error).__name__])[0].partition(". Please use")[0]


def _checked_state_dict(data: object, where: str) -> dict[str, Tensor]:
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: expected tensors by name, got {type(data).__name__}")
    strange = [str(key) for key, value in data.items() if not _is_plain(key, value)]
    converted = [name for name in strange if "._packed_params" in name]
    if converted:
        raise CheckpointError(
            f"{where}: {listed(converted, 2)} are packed weights of torch.ao.quantization.convert, "
            "which hold no plain integers; use the checkpoint of the training, before it was "
            "converted"
        )
    if strange:
        raise CheckpointError(
            f"{where}: expected plain tensors by name, got other things under {listed(strange)}; "
            "save the model's state_dict() alone"
        )
    return {name: _resolved(tensor) for name, tensor in data.items()}


def _resolved(tensor: Tensor) -> Tensor:
    """The tensor's numbers as they are: a pickle may say of a storage that it is read negated or
    conjugated, which its bytes, its place in memory and some kernels do not show."""
    return tensor.detach().resolve_neg().resolve_conj()


def _is_plain(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    # Strides of 0 let a file of a few bytes claim any size.
    return value.nbytes <= value.untyped_storage().nbytes()
