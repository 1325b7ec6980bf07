"""Attention over sequences without padding by PyTorch: torch.nn.attention.varlen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_MISSING = f"torch {torch.__version__} has no torch.nn.attention.varlen with a scale"


@cache
def _functions() -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """varlen_attn if it takes a scale, and varlen_attn_out if it is there."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None, None
    plain = varlen.varlen_attn
    if "scale" not in inspect.signature(plain).parameters:
        return None, None
    return plain, getattr(varlen, "varlen_attn_out", None)


def _other_implementation() -> str | None:
    """What has been activated in the place of PyTorch's FlashAttention 2, or None.

    FlashAttention 3 reads whole tiles of keys and values: rows behind the last sequence, which may
    hold no numbers, could reach it.
    """
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    name = None if current is None else current()
    return None if name in (None, "FA2") else str(name)


def unavailable(
    device: torch.device, dtype: torch.dtype, head_size: int, bias: bool = False
) -> str | None:
    """Why :func:`varlen_attention` cannot be used; None where it can."""
    if _functions()[0] is None:
        return _MISSING
    if device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, the device is {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, not {dtype}"
    if (other := _other_implementation()) is not None:
        return f"is tried with PyTorch's own kernel, {other} has been activated"
    if head_size % 8 or head_size > 256:
        return f"takes heads of 8, 16 .. 256 features, not {head_size}"
    return "adds no bias to the scores" if bias else None


def launches() -> int:
    """Kernels that one call launches: one that does not write in place also fills the state of a
    generator and is copied."""
    return 1 if _functions()[1] is not None else 3


def varlen_attention(
    qkv: Tensor, bounds: Tensor, longest: int, heads: int, scale: float, out: Tensor
) -> None:
    """softmax(scale * Q K^T) V for each sequence and head.

    Args:
        qkv: bf16 or fp16 [tokens, 3 * heads * head_size]: queries, keys and values side by side.
        bounds: int32 [sequences + 1] on qkv's device: where each sequence begins, and the end.
            Sequences may be empty; rows from the end on are not read, and hold anything then.
        longest: at least the length of the longest sequence.
        heads: number of attention heads.
        scale: multiplies the scores.
        out: [tokens, heads * head_size] of qkv's type, written.

    Raises:
        RuntimeError: this torch has no such function.
    """
    plain, into = _functions()
    if plain is None:
        raise RuntimeError(_MISSING)
    q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
    result = out.unflatten(1, (heads, -1))
    if into is not None:
        into(result, q, k, v, bounds, bounds, longest, longest, scale=scale)
    else:
        result.copy_(plain(q, k, v, bounds, bounds, longest, longest, scale=scale))
