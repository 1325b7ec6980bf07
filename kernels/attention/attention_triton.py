"""Variable-length self-attention over a stream of sequences without padding, one launch.

Online softmax (arXiv 2205.14135): a program holds one head of a block of queries and goes over the
keys of their sequence in tiles.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.operands import Target
from ..quantize.target_triton import finish_rows, store_tile
from .schedule import Config

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e38)  # below any score, and finite times LOG2_E: never inf - inf
INFINITY = tl.constexpr(float("inf"))

_HELD_BYTES = 128  # floats that a thread reads back at once while rows are quantized


@triton.jit
def load_head(base, stride, rows, length, HEAD: tl.constexpr, COLUMNS: tl.constexpr):
    """One head's values [rows, COLUMNS] of tokens before ``length``, zeros elsewhere.

    Rows count from the sequence's first: 32 bits hold their offsets, in half the registers.
    """
    columns = tl.arange(0, COLUMNS)
    inside = (rows < length)[:, None]
    if HEAD != COLUMNS:
        inside = inside & (columns < HEAD)[None, :]
    return tl.load(base + (rows[:, None] * stride + columns[None, :]), mask=inside, other=0.0)


@triton.jit
def scores_of(q, k, live, bias_rows, positions, scale, PRECISION: tl.constexpr):
    """float32 scores [queries, keys], -inf for keys that are not live.

    Without a bias they still lack ``scale``, which goes into the exponent.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if bias_rows is not None:
        at = tl.load(positions, mask=live, other=0)
        b = tl.load(bias_rows[:, None] + at[None, :], mask=live[None, :], other=0.0)
        s = s * scale + b.to(tl.float32)
    return tl.where(live[None, :], s, -INFINITY)


@triton.jit(do_not_specialize=["tokens"])
def attention_kernel(
    qkv,
    stride,
    blocks,
    heads,
    scale,
    bias,
    span,
    positions,
    tokens,
    target,
    SCHEME: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """One head of one query block; the heads of a block are neighbours."""
    block, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first = tl.load(blocks + block * 3)
    start = tl.load(blocks + block * 3 + 1)
    end = tl.load(blocks + block * 3 + 2)
    if first >= end:
        return
    features, length = heads * HEAD, end - start
    queries = first - start + tl.arange(0, BLOCK_Q)
    keys = tl.arange(0, BLOCK_K)
    base = qkv + start.to(tl.int64) * stride + head * HEAD
    q = load_head(base, stride, queries, length, HEAD, COLUMNS)
    base += features
    exponent = scale * LOG2_E
    bias_rows = None
    here = None
    if bias is not None:
        at = tl.load(positions + start + queries, mask=queries < length, other=0)
        bias_rows = bias + (head.to(tl.int64) * span + at) * span
        here = positions + start + keys
        exponent = LOG2_E
    if SINGLE:
        k = load_head(base, stride, keys, length, HEAD, COLUMNS)
        v = load_head(base + features, stride, keys, length, HEAD, COLUMNS)
        s = scores_of(q, k, keys < length, bias_rows, here, scale, PRECISION)
        largest = tl.maximum(tl.max(s, axis=1), LOWEST)
        p = tl.exp2(tl.fma(s, exponent, -(largest * exponent)[:, None]))
        total = tl.sum(p, axis=1)
        y = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        # Keys beyond the tile were not read: no number, rather than a wrong one.
        total = tl.where(length > BLOCK_K, float("nan"), total)
    else:
        largest = tl.full([BLOCK_Q], LOWEST, tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        y = tl.zeros([BLOCK_Q, COLUMNS], tl.float32)
        for done in range(0, length, BLOCK_K):
            left = length - done
            k = load_head(base, stride, keys, left, HEAD, COLUMNS)
            v = load_head(base + features, stride, keys, left, HEAD, COLUMNS)
            s = scores_of(q, k, keys < left, bias_rows, here, scale, PRECISION)
            larger = tl.maximum(largest, tl.max(s, axis=1))
            p = tl.exp2(tl.fma(s, exponent, -(larger * exponent)[:, None]))
            shrink = tl.exp2((largest - larger) * exponent)
            total = total * shrink + tl.sum(p, axis=1)
            y = tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision=PRECISION)
            largest = larger
            base += BLOCK_K * stride
            if bias is not None:
                here += BLOCK_K
    # Rows of the next sequence and columns of the next head belong to other programs.
    rows = tl.where(queries < length, start + queries, tokens)
    columns = tl.arange(0, COLUMNS)
    if HEAD == COLUMNS:
        columns += head * HEAD
    else:
        columns = tl.where(columns < HEAD, head * HEAD + columns, features)
    store_tile(y / total[:, None], rows, columns, tokens, features, target, SCHEME)
    finish_rows(block, heads, rows, tokens, features, target, SCHEME, BLOCK_N)


def attention(
    qkv: Tensor,
    blocks: Tensor,
    heads: int,
    scale: float,
    bias: Tensor | None,
    positions: Tensor | None,
    target: Target,
    scheme: str,
    config: Config,
) -> None:
    """softmax(scale * Q K^T + bias) V for each sequence and head, into ``target``.

    Args:
        qkv: bf16, fp16 or float32 [tokens, 3 * heads * head_size]: queries, keys and values side
            by side; features side by side. A sequence may span 2**31 elements.
        blocks: int32 [n, 3], :func:`query_blocks` of the lengths and ``config.block_q``.
        heads: number of attention heads.
        scale: multiplies the scores, positive.
        bias: float [heads, span, span] added to the scores by query and key position, or None.
        positions: int32 or int64 [tokens], each token's position in ``bias``; only with ``bias``.
        target: [tokens, heads * head_size]; for a dynamic scheme with ``floats``, ``ranges`` and a
            counter for each row of ``blocks``. Rows of no sequence stay as they are.
        scheme: one of ``SCHEMES``.
        config: tiles; a sequence longer than the tile of a ``single`` one becomes NaN.

    Raises:
        ValueError: an argument is not as said, or the target lacks a part.
    """
    tokens, width = qkv.shape
    if not scale > 0:
        raise ValueError(f"scale {scale}: must be positive, softmax is taken of scale * scores")
    _check(qkv, blocks, heads, bias, positions, target, scheme)
    if tokens == 0 or len(blocks) == 0:
        return
    head_size = width // (3 * heads)
    features = heads * head_size
    held = _HELD_BYTES // qkv.element_size() * 32 * config.num_warps // config.block_q
    if scheme == "full_range":
        held //= 2  # each quotient takes registers of its own
    with torch.cuda.device_of(qkv):
        attention_kernel[(len(blocks) * heads,)](
            qkv,
            qkv.stride(0),
            blocks,
            heads,
            scale,
            bias,
            0 if bias is None else bias.shape[1],
            positions,
            tokens,
            target,
            scheme,
            "ieee" if qkv.dtype == torch.float32 else "tf32",
            head_size,
            max(16, triton.next_power_of_2(head_size)),
            config.block_q,
            config.block_k,
            min(max(held, 32), triton.next_power_of_2(features)),
            config.single,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )


def _check(
    qkv: Tensor,
    blocks: Tensor,
    heads: int,
    bias: Tensor | None,
    positions: Tensor | None,
    target: Target,
    scheme: str,
) -> None:
    if qkv.shape[1] % (3 * heads) or qkv.stride(1) != 1:
        raise ValueError(
            f"qkv {list(qkv.shape)} with strides {qkv.stride()}: must be [tokens, 3 * {heads} heads"
            " * head_size], features side by side"
        )
    if blocks.dtype != torch.int32 or blocks.shape[1:] != (3,) or not blocks.is_contiguous():
        raise ValueError(
            f"blocks {blocks.dtype} {list(blocks.shape)}: must be int32 [n, 3], contiguous"
        )
    if bias is not None:
        if bias.ndim != 3 or bias.shape[0] != heads or bias.shape[1] != bias.shape[2]:
            raise ValueError(f"bias {list(bias.shape)}: must be [{heads} heads, span, span]")
        if not bias.is_contiguous() or positions is None or not positions.is_contiguous():
            raise ValueError("bias and positions go together and must be contiguous")
    if scheme not in ("none", "static") and (
        target.floats is None
        or target.ranges is None
        or target.counters is None
        or len(target.counters) < len(blocks)
    ):
        raise ValueError(
            f"scheme {scheme!r}: the target must have floats, ranges and {len(blocks)} counters"
        )
