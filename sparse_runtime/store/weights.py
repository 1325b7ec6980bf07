"""model.safetensors: its header, checked before anything is mapped or allocated by it.

The library refuses most damaged headers too. Here every refusal names the tensor, what was expected
and what came, and nothing hostile reaches native code.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import FormatError
from .model import TENSOR_DTYPES
from .strict_json import parse_object

WEIGHTS_FILE = "model.safetensors"
METADATA = {"format": "pt"}

MAX_HEADER_BYTES = 8 * 2**20
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: dtype, shape, and the bytes [begin, end) behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors a safetensors file holds, by name.

    Raises:
        FormatError: the file is missing or truncated, or its header is not sound.
    """
    if not path.is_file():
        if any(path.parent.glob("model-*-of-*.safetensors")):
            raise FormatError(
                f"{path}: expected the packed weights in one file, got shards, which transformers "
                "alone opens (after `import sparse_runtime`); save it again with a larger "
                "max_shard_size"
            )
        raise FormatError(
            f"{path}: expected the packed weights, got no such file; convert the checkpoint again"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(
                    f"expected a header of at most {min(max(size - 8, 0), MAX_HEADER_BYTES)} "
                    f"bytes, got {length} in a file of {size}"
                )
            data = file.read(length)
        return _parse_header(data, size - 8 - length)
    except ValueError as error:
        raise FormatError(
            f"{path}: {error}; the file is damaged: fetch or convert it again"
        ) from None


def _parse_header(data: bytes, data_bytes: int) -> dict[str, Entry]:
    header = parse_object(data)
    metadata = header.pop("__metadata__", None)
    if metadata != METADATA:
        raise ValueError(f"__metadata__: expected {METADATA}, got {str(metadata)[:80]}")
    entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
    end, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(
                f"{name[:80]}: expected its bytes to follow {before[:80]} at offset {end}, got "
                f"offset {entry.begin} (an overlap or a gap)"
            )
        if (8 + len(data) + entry.begin) % entry.dtype.itemsize:
            raise ValueError(
                f"{name[:80]}: expected an offset aligned to {entry.dtype.itemsize} bytes"
            )
        end, before = entry.end, name
    if end != data_bytes:
        raise ValueError(f"expected {end} bytes of tensors, got {data_bytes}")
    return entries


def _parse_entry(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]}: expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TENSOR_DTYPES:
        raise ValueError(
            f"{name[:80]}: expected a dtype of {', '.join(TENSOR_DTYPES)}, got {str(dtype)[:40]!r}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(
            f"{name[:80]}: expected a shape of at most {MAX_DIMENSIONS} sizes, got "
            f"{str(shape)[:80]}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(
            f"{name[:80]}: expected data_offsets [begin, end], got {str(offsets)[:80]}"
        )
    needed = math.prod(shape) * TENSOR_DTYPES[dtype].itemsize
    if needed != offsets[1] - offsets[0]:
        raise ValueError(
            f"{name[:80]}: expected {needed} bytes for {dtype} {shape}, got "
            f"{offsets[1] - offsets[0]}"
        )
    return Entry(TENSOR_DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def map_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors, mapped from a file that :func:`read_header` has found sound."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, RuntimeError) as error:  # the latter is what torch's mapping raises
        raise FormatError(f"{path}: {error}; fetch or convert the file again") from None
