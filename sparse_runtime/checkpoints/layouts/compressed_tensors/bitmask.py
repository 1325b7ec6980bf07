"""sparse-bitmask and sparse-24-bitmask: kept values, and a bit for each position.

Source: compressed-tensors 0.3 to 0.12, compressors/sparse_compressors. ``compressed`` holds the
kept values row by row, ``bitmask`` a bit for each position, uint8 [rows, ceil(columns / 8)], the
lowest bit first. A vector is one row, whose parts lack the first axis. Versions up to 0.8 pack
every tensor, biases, norms and scales included, under its full name: ``X.weight.compressed``,
``X.bias.compressed``. Later ones pack weights, as ``X.compressed``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....spec import LinearSpec, Structure, ValueSpec
from ...draft import Draft, LazyTensor
from ...errors import CheckpointError, listed
from ...naming import is_ignored_buffer

_PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_DTYPES = (
    *("float32", "float16", "bfloat16", "float8_e4m3fn"),
    *("int8", "int32", "int64"),  # zero points, packed values and sizes among them
)


def bitmask_modules(draft: Draft) -> list[str]:
    """What stands before ``.bitmask``."""
    return draft.modules("bitmask")


def decompress(draft: Draft) -> None:
    """Put a tensor in the place of the parts of each bitmask.

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
    full = any(prefix.endswith((".weight", ".bias")) for prefix in prefixes)
    for prefix in prefixes:
        _decompress_one(draft, prefix, prefix if full else f"{prefix}.weight")
    what = "tensor = compressed" if full else "weight = compressed"
    draft.steps.append(
        f"{what} at the places of bitmask in {len(prefixes)} {'tensors' if full else 'modules'}"
    )


def _decompress_one(draft: Draft, prefix: str, name: str) -> None:
    values, mask = draft.take(f"{prefix}.compressed"), draft.take(f"{prefix}.bitmask")
    shape = _shape(draft.take(f"{prefix}.shape"), f"{prefix}.shape")
    offsets = None
    if f"{prefix}.row_offsets" in draft.tensors:
        offsets = draft.take(f"{prefix}.row_offsets")
        if offsets.shape != shape[:-1] or offsets.dtype != "int64":
            raise CheckpointError(
                f"{prefix}.row_offsets: expected int64 {list(shape[:-1])}, got {offsets.dtype} "
                f"{list(offsets.shape)}; the file is damaged"
            )
    elif len(shape) != 2 or values.shape != (shape[0], shape[1] // 2) or shape[1] % 2:
        raise CheckpointError(
            f"{prefix}.compressed: expected half of the {list(shape)} that shape states, as "
            f"nothing tells where the rows begin, got {list(values.shape)}; the file is incomplete"
        )
    packed = (*shape[:-1], -(-shape[-1] // 8))
    if mask.shape != packed or mask.dtype != "uint8":
        raise CheckpointError(
            f"{prefix}.bitmask: expected uint8 {list(packed)} for a weight of "
            f"{list(shape)}, got {mask.dtype} {list(mask.shape)}; the file is damaged"
        )
    if values.dtype not in _DTYPES:
        raise CheckpointError(
            f"{prefix}.compressed: expected {', '.join(_DTYPES)}, got {values.dtype}"
        )
    if is_ignored_buffer(name, values.dtype):
        draft.dropped[name] = "transformers rebuilds it"
        return
    dtype = getattr(torch, values.dtype)
    draft.put(name, shape, dtype, lambda: _scatter(prefix, shape, values, mask, offsets))


def _shape(stored: LazyTensor, name: str) -> tuple[int, ...]:
    """What ``shape`` states: int64 [2] or [2, 1], of a vector [1]."""
    if stored.shape not in ((1,), (2,), (2, 1)) or stored.dtype not in ("int64", "int32"):
        raise CheckpointError(
            f"{name}: expected two integers, or one of a vector, got {stored.dtype} "
            f"{list(stored.shape)}; the file is damaged"
        )
    shape = tuple(int(size) for size in stored.load().flatten())
    try:
        LinearSpec(_rows_and_columns(shape), Structure("dense"), ValueSpec("fp32"))
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged") from error
    return shape


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0] if len(shape) == 2 else 1), shape[-1]


def _scatter(
    prefix: str,
    shape: tuple[int, ...],
    values: LazyTensor,
    mask: LazyTensor,
    offsets: LazyTensor | None,
) -> Tensor:
    kept = values.load()
    rows, cols = _rows_and_columns(shape)
    packed = mask.load().reshape(rows, -1)
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    places = bits.flatten(1).bool()
    if bool(places[:, cols:].any()):
        raise CheckpointError(
            f"{prefix}.bitmask: bits are set beyond the {cols} columns; the file is damaged"
        )
    places = places[:, :cols]
    counts = places.sum(1)
    if int(counts.sum()) != kept.numel():
        raise CheckpointError(
            f"{prefix}.bitmask: expected a bit for each of the {kept.numel()} values of "
            f"compressed, got {int(counts.sum())}; the file is damaged"
        )
    if offsets is None and not bool((counts == cols // 2).all()):
        raise CheckpointError(
            f"{prefix}.bitmask: expected {cols // 2} bits in each row, as compressed has "
            "values, got other counts; the file is damaged"
        )
    if offsets is not None and not torch.equal(offsets.load().flatten(), counts.cumsum(0) - counts):
        raise CheckpointError(
            f"{prefix}.row_offsets: expected the sums of the bitmask's rows, got other numbers; "
            "the file is damaged"
        )
    # Through integers of the same width: float8 tensors know no assignment by mask.
    raw = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[kept.element_size()]
    weight = torch.zeros((rows, cols), dtype=raw)
    weight[places] = kept.contiguous().view(raw).flatten()
    return weight.view(kept.dtype).reshape(shape)
