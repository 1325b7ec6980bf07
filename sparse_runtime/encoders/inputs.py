"""Padded inputs -> one stream of real tokens, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import TokenBatch
from .settings import Settings

_INTEGERS = (torch.int64, torch.int32)


def read_inputs(
    settings: Settings,
    device: torch.device,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[TokenBatch, tuple[Tensor, ...]]:
    """Check a padded batch and keep its unmasked tokens.

    Args:
        settings: the model's.
        device: where the results lie.
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
    """
    _check_integers("input_ids", input_ids, None)
    shape = input_ids.shape
    input_ids = input_ids.to(device, torch.int64)
    batch = _batch(shape, attention_mask, device)
    rows = settings.rows
    ids: dict[str, Tensor] = {"word": _unmasked(input_ids, batch)}
    _check_range("input_ids", ids["word"], rows["word"], "the vocabulary has")
    if "token_type" in rows:
        if token_type_ids is None:
            ids["token_type"] = torch.zeros_like(ids["word"])
        else:
            _check_integers("token_type_ids", token_type_ids, shape)
            ids["token_type"] = _unmasked(token_type_ids.to(device, torch.int64), batch)
            _check_range("token_type_ids", ids["token_type"], rows["token_type"], "the model has")
    ids["position"] = _positions(settings, input_ids, position_ids, batch)
    what = f"sequences of up to {settings.max_length} tokens run, truncate longer ones: there are"
    _check_range("position_ids", ids["position"], rows["position"], what)
    return batch, tuple(ids[kind] for kind, _ in settings.architecture.tables)


def restore_padding(tokens: Tensor, batch: TokenBatch) -> Tensor:
    """[tokens, features] -> [batch, sequence, features], zeros at masked positions."""
    size = (batch.batch_size, batch.seq_len, tokens.shape[1])
    if tokens.shape[0] == batch.batch_size * batch.seq_len:
        return tokens.view(size)
    padded = tokens.new_zeros(batch.batch_size * batch.seq_len, tokens.shape[1])
    padded[batch.index] = tokens
    return padded.view(size)


def starts_with_first_tokens(batch: TokenBatch) -> bool:
    """Whether the first column of every row is a real token."""
    if not all(batch.lengths):
        return False
    return not bool(batch.row_positions[first_tokens(batch)].any())


def first_tokens(batch: TokenBatch) -> Tensor:
    """int64 [batch]: where each sequence begins in the stream."""
    lengths = torch.tensor(batch.lengths, dtype=torch.int64, device=batch.index.device)
    return lengths.cumsum(0) - lengths


def _batch(shape: torch.Size, mask: Tensor | None, device: torch.device) -> TokenBatch:
    batch_size, seq_len = shape
    if mask is None or _check_mask(mask, shape):
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
        shape = input_ids.shape
        one_row = torch.Size((1, shape[1]))
        expected = one_row if position_ids.shape == one_row else shape
        _check_integers("position_ids", position_ids, expected)
        positions = position_ids.to(input_ids.device, torch.int64).expand(shape)
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


def _check_mask(mask: Tensor, shape: torch.Size) -> bool:
    """Whether every token is kept."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask: expected a tensor, got {type(mask).__name__}")
    if mask.shape != shape:
        raise ValueError(
            f"attention_mask: expected shape {list(shape)} like input_ids, got {list(mask.shape)}; "
            "masks by pairs of tokens are not supported"
        )
    ones = mask == 1
    if bool(ones.all()):
        return True
    if not bool((ones | (mask == 0)).all()):
        raise ValueError("attention_mask: expected 1 for real tokens and 0 for padding only")
    return False


def _check_range(name: str, ids: Tensor, rows: int, what: str) -> None:
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise ValueError(f"{name}: {wrong} is out of range, {what} {rows} rows")
