"""Padded inputs -> one stream of real tokens, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import Backend, Padded, TokenBatch
from .settings import Settings

if TYPE_CHECKING:
    from ..ops.cuda.padding import PaddedScan

IRREGULAR_MASK = "attention_mask: expected 1 for real tokens and 0 for padding only"

_INTEGERS = (torch.int64, torch.int32)
_SCANNED = {"word": "id", "token_type": "type", "position": "position"}


def read_inputs(
    settings: Settings,
    backend: Backend,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[TokenBatch, tuple[Tensor, ...]]:
    """Check a padded batch and keep its unmasked tokens.

    Inputs on the CPU are read there, and only tokens are copied. Inputs on the GPU are looked at by
    one kernel, whose report is all that the host waits for.

    Args:
        settings: the model's.
        backend: the model's; results lie on its device.
        input_ids: int32 or int64 [batch, sequence].
        attention_mask: 0 and 1 of any type [batch, sequence]; None keeps every token. Holes and
            padding on either side are allowed.
        token_type_ids: int32 or int64 [batch, sequence]; None is 0. Ignored, as transformers does,
            where the family has no such table.
        position_ids: int32 or int64 [batch, sequence] or [1, sequence]; None is the family's own.

    Returns:
        (the batch, int64 [tokens] for each embedding table)

    Raises:
        TypeError: an input is not a tensor of the right type.
        ValueError: a wrong shape, or a number that its table has no row for.
        RuntimeError: the current stream is being captured, and there is a mask.
    """
    padded = _check_types(settings, input_ids, attention_mask, token_type_ids, position_ids)
    given = [tensor for tensor in padded if tensor is not None]
    capturing = backend.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing and padded.mask is not None:
        raise RuntimeError(
            "attention_mask: cannot be read while the stream is being captured; capture a batch "
            "without padding (attention_mask=None), or none: the model captures graphs of its own"
        )
    on_host = all(tensor.is_cpu for tensor in given)
    scan = None if capturing else backend.scan(padded, settings.padding_id)
    if scan is not None:
        batch, ids = _check_scan(settings, padded, scan).unpad()
    else:
        device = torch.device("cpu") if on_host else backend.device
        batch, ids = _read(settings, padded, device, capturing=capturing)
        if device != backend.device:
            batch, ids = _move(batch, ids, backend.device)
    return batch, tuple(ids[kind] for kind, _ in settings.architecture.tables)


def _check_types(
    settings: Settings,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
) -> Padded:
    """The inputs that are read, each of the right type and shape."""
    _check_integers("input_ids", input_ids, None)
    shape = input_ids.shape
    if attention_mask is not None:
        _check_mask_type(attention_mask, shape)
    if "token_type" not in settings.rows:
        token_type_ids = None
    if token_type_ids is not None:
        _check_integers("token_type_ids", token_type_ids, shape)
    if position_ids is not None:
        one_row = torch.Size((1, shape[1]))
        in_one_row = getattr(position_ids, "shape", None) == one_row
        _check_integers("position_ids", position_ids, one_row if in_one_row else shape)
    return Padded(input_ids, attention_mask, token_type_ids, position_ids)


def _check_scan(settings: Settings, padded: Padded, scan: PaddedScan) -> PaddedScan:
    """The scan, whose numbers are those of the model."""
    if scan.irregular:
        raise ValueError(IRREGULAR_MASK)
    for kind, (name, what) in _limits(settings).items():
        bounds = scan.bounds(_SCANNED[kind])
        if bounds is not None and not (kind == "token_type" and padded.types is None):
            _check_bounds(name, *bounds, settings.rows[kind], what)
    return scan


def _read(
    settings: Settings, padded: Padded, device: torch.device, *, capturing: bool
) -> tuple[TokenBatch, dict[str, Tensor]]:
    """Check the numbers and keep the real tokens, in plain PyTorch on ``device``."""
    input_ids = padded.ids.to(device, torch.int64)
    batch = _batch(input_ids.shape, padded.mask, device)
    ids = {"word": _unmasked(input_ids, batch)}
    ids["token_type"] = torch.zeros_like(ids["word"])
    if padded.types is not None:
        ids["token_type"] = _unmasked(padded.types.to(device, torch.int64), batch)
    ids["position"] = _positions(settings, input_ids, padded.positions, batch)
    for kind, (name, what) in _limits(settings).items():
        _check_range(name, ids[kind], settings.rows[kind], what, capturing=capturing)
    return batch, ids


def _limits(settings: Settings) -> dict[str, tuple[str, str]]:
    """For each table that there is: the input's name, and what bounds it."""
    limits = {
        "word": ("input_ids", "the vocabulary has"),
        "token_type": ("token_type_ids", "the model has"),
        "position": (
            "position_ids",
            f"sequences of up to {settings.max_length} tokens run, truncate longer ones: there are",
        ),
    }
    return {kind: limit for kind, limit in limits.items() if kind in settings.rows}


def _move(
    batch: TokenBatch, ids: dict[str, Tensor], device: torch.device
) -> tuple[TokenBatch, dict[str, Tensor]]:
    """What was read on the CPU, on a GPU: one copy, for which the host does not wait."""
    lengths = torch.tensor([0, *batch.lengths])
    columns = [*ids.values(), batch.row_positions, batch.index, lengths.cumsum(0)]
    flat = torch.cat(columns)
    if flat.numel() and device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([len(column) for column in columns])
    *moved, positions, index, starts = parts
    batch = replace(
        batch,
        row_positions=positions,
        index=index,
        starts=starts,
        leads=starts_with_first_tokens(batch),
    )
    return batch, dict(zip(ids, moved, strict=True))


def starts_with_first_tokens(batch: TokenBatch) -> bool:
    """Whether the first column of every row is a real token."""
    if batch.leads is not None:
        return batch.leads
    if not all(batch.lengths):
        return False
    if len(batch.index) == batch.batch_size * batch.seq_len:
        return True
    return not bool(batch.row_positions[first_tokens(batch)].any())


def first_tokens(batch: TokenBatch) -> Tensor:
    """Integers [batch]: where each sequence begins in the stream."""
    if batch.starts is not None:
        return batch.starts[:-1]
    if len(batch.index) == batch.batch_size * batch.seq_len:
        return torch.arange(batch.batch_size, device=batch.index.device) * batch.seq_len
    lengths = torch.tensor(batch.lengths, dtype=torch.int64, device=batch.index.device)
    return lengths.cumsum(0) - lengths


def _batch(shape: torch.Size, mask: Tensor | None, device: torch.device) -> TokenBatch:
    batch_size, seq_len = shape
    if mask is None or _keeps_all(mask):
        index = torch.arange(batch_size * seq_len, device=device)
        lengths = [seq_len] * batch_size
    else:
        real = mask.to(device) != 0
        index = real.flatten().nonzero().squeeze(1)
        lengths = real.sum(1).tolist()
    columns = index % seq_len if batch_size > 1 and seq_len else index
    return TokenBatch(lengths, columns, index, batch_size, seq_len)


def _unmasked(tensor: Tensor, batch: TokenBatch) -> Tensor:
    """[batch, sequence] -> [tokens]; a view where nothing is masked."""
    flat = tensor.flatten()
    return flat if len(batch.index) == len(flat) else flat[batch.index]


def _positions(
    settings: Settings, input_ids: Tensor, position_ids: Tensor | None, batch: TokenBatch
) -> Tensor:
    if position_ids is not None:
        positions = position_ids.to(input_ids.device, torch.int64).expand(input_ids.shape)
    elif settings.padding_id is None:
        return batch.row_positions
    else:
        real = input_ids != settings.padding_id
        positions = real.cumsum(1) * real + settings.padding_id
    return _unmasked(positions, batch)


def _check_integers(name: str, tensor: Tensor, shape: torch.Size | None) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in _INTEGERS:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected an int64 or int32 tensor, got {found}")
    if shape is None and tensor.ndim != 2:
        raise ValueError(f"{name}: expected [batch, sequence], got shape {list(tensor.shape)}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def _check_mask_type(mask: Tensor, shape: torch.Size) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask: expected a tensor, got {type(mask).__name__}")
    if mask.shape != shape:
        pairs = "; masks by pairs of tokens are not supported" if mask.ndim > 2 else ""
        raise ValueError(
            f"attention_mask: expected shape {list(shape)} like input_ids, got {list(mask.shape)}"
            f"{pairs}"
        )


def _keeps_all(mask: Tensor) -> bool:
    """Whether every token is kept."""
    ones = mask == 1
    if bool(ones.all()):
        return True
    if not bool((ones | (mask == 0)).all()):
        raise ValueError(IRREGULAR_MASK)
    return False


def _check_range(name: str, ids: Tensor, rows: int, what: str, *, capturing: bool) -> None:
    if ids.numel() == 0:
        return
    if capturing:  # checked by the device at every replay, as PyTorch's embedding does
        torch._assert_async(((ids >= 0) & (ids < rows)).all(), f"{name}: a number is out of range")
        return
    low, high = (int(bound) for bound in ids.aminmax())
    _check_bounds(name, low, high, rows, what)


def _check_bounds(name: str, low: int, high: int, rows: int, what: str) -> None:
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise ValueError(f"{name}: {wrong} is out of range, {what} {rows} rows")
