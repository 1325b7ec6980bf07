"""sparse-bitmask and sparse-24-bitmask: kept values, and a bit for each position.

Source: compressed-tensors 0.12, compressors/sparse_compressors. ``compressed`` holds the kept
values row by row, ``bitmask`` a bit for each position, uint8 [rows, ceil(columns / 8)], the lowest
bit first. Values may be floats, float8 or int8. Files of SparseML call the tensors
``X.weight.compressed``, others ``X.compressed``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....spec import LinearSpec, Structure, ValueSpec
from ...draft import Draft, LazyTensor
from ...errors import CheckpointError, listed

_PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_DTYPES = ("float32", "float16", "bfloat16", "int8", "float8_e4m3fn")


def bitmask_modules(draft: Draft) -> list[str]:
    """What stands before ``.bitmask``."""
    return draft.modules("bitmask")


def decompress(draft: Draft) -> None:
    """Put ``X.weight`` in the place of the parts of each bitmask.

    Raises:
        CheckpointError: a part is missing or does not fit the others. Reading the weight raises it
            for bits that do not add up to the values.
    """
    prefixes = bitmask_modules(draft)
    lonely = {p for part in _PARTS for p in draft.modules(part)} - set(prefixes)
    if lonely:
        raise CheckpointError(
            f"{draft.where}: expected shape, compressed and bitmask in the same modules, got one "
            f"without the bitmask in {listed(lonely)}; the file is incomplete"
        )
    for prefix in prefixes:
        _decompress_one(draft, prefix)
    draft.steps.append(f"weight = compressed at the places of bitmask in {len(prefixes)} modules")


def _decompress_one(draft: Draft, prefix: str) -> None:
    values, mask = draft.take(f"{prefix}.compressed"), draft.take(f"{prefix}.bitmask")
    shape = _shape(draft.take(f"{prefix}.shape"), f"{prefix}.shape")
    offsets = None
    if f"{prefix}.row_offsets" in draft.tensors:
        offsets = draft.take(f"{prefix}.row_offsets")
        if offsets.shape != shape[:1] or offsets.dtype != "int64":
            raise CheckpointError(
                f"{prefix}.row_offsets: expected int64 [{shape[0]}], got {offsets.dtype} "
                f"{list(offsets.shape)}; the file is damaged"
            )
    elif values.shape != (shape[0], shape[1] // 2) or shape[1] % 2:
        raise CheckpointError(
            f"{prefix}.compressed: expected half of the {list(shape)} that shape states, as "
            f"nothing tells where the rows begin, got {list(values.shape)}; the file is incomplete"
        )
    bytes_a_row = -(-shape[1] // 8)
    if mask.shape != (shape[0], bytes_a_row) or mask.dtype != "uint8":
        raise CheckpointError(
            f"{prefix}.bitmask: expected uint8 [{shape[0]}, {bytes_a_row}] for a weight of "
            f"{list(shape)}, got {mask.dtype} {list(mask.shape)}; the file is damaged"
        )
    if values.dtype not in _DTYPES:
        raise CheckpointError(
            f"{prefix}.compressed: expected {', '.join(_DTYPES)}, got {values.dtype}"
        )
    module = prefix.removesuffix(".weight")
    dtype = getattr(torch, values.dtype)
    draft.put(
        f"{module}.weight", shape, dtype, lambda: _scatter(prefix, shape, values, mask, offsets)
    )


def _shape(stored: LazyTensor, name: str) -> tuple[int, int]:
    """What ``shape`` states: int64 [2] or [2, 1]."""
    if stored.shape not in ((2,), (2, 1)) or stored.dtype not in ("int64", "int32"):
        raise CheckpointError(
            f"{name}: expected two integers, got {stored.dtype} {list(stored.shape)}; the file is "
            "damaged"
        )
    rows, cols = (int(size) for size in stored.load().flatten())
    try:
        LinearSpec((rows, cols), Structure("dense"), ValueSpec("fp32"))
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged") from error
    return rows, cols


def _scatter(
    prefix: str,
    shape: tuple[int, int],
    values: LazyTensor,
    mask: LazyTensor,
    offsets: LazyTensor | None,
) -> Tensor:
    kept = values.load()
    bits = (mask.load().unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    places = bits.flatten(1).bool()
    if bool(places[:, shape[1] :].any()):
        raise CheckpointError(
            f"{prefix}.bitmask: bits are set beyond the {shape[1]} columns; the file is damaged"
        )
    places = places[:, : shape[1]]
    counts = places.sum(1)
    if int(counts.sum()) != kept.numel():
        raise CheckpointError(
            f"{prefix}.bitmask: expected a bit for each of the {kept.numel()} values of "
            f"compressed, got {int(counts.sum())}; the file is damaged"
        )
    if offsets is None and not bool((counts == shape[1] // 2).all()):
        raise CheckpointError(
            f"{prefix}.bitmask: expected {shape[1] // 2} bits in each row, as compressed has "
            "values, got other counts; the file is damaged"
        )
    if offsets is not None and not torch.equal(offsets.load(), counts.cumsum(0) - counts):
        raise CheckpointError(
            f"{prefix}.row_offsets: expected the sums of the bitmask's rows, got other numbers; "
            "the file is damaged"
        )
    # Through integers of the same width: float8 tensors know no assignment by mask.
    raw = {1: torch.int8, 2: torch.int16, 4: torch.int32}[kept.element_size()]
    weight = torch.zeros(shape, dtype=raw)
    weight[places] = kept.contiguous().view(raw).flatten()
    return weight.view(kept.dtype)
