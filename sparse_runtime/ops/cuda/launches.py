"""Launching the steps of a plan. The only module here that needs triton to be imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...kernels.attention import reference as attention_reference
from ...kernels.attention.attention_triton import attention
from ...kernels.attention.varlen import varlen_attention
from ...kernels.embedding.embedding_triton import embed
from ...kernels.layer_norm.layer_norm_triton import normalize
from ...kernels.linear.operands import Target
from ...kernels.quantize.quantize_rows_triton import quantize_rows
from ..reference import quantizers_of
from ..types import Norm
from .memory import Frame
from .plan import Step
from .values import Apply, Attend, AttendRows, AttendVarlen, Embed, Linear, Node, Normalize, Rows


def launch(frame: Frame, step: Step) -> None:
    """Enqueue one step on the current stream."""
    target, scheme = frame.target(step)
    if step.quantizes is not None:
        quantize_rows(frame.floats(step.value), target, scheme)
        return
    _LAUNCHES[type(step.value.node)](frame, step.value.node, target, scheme)


def _embed(frame: Frame, node: Embed, target: Target, scheme: str) -> None:
    ids = tuple(column[: frame.rows] for column in frame.memory.ids)
    embed(ids, node.tables, *_norm(node.norm), target, scheme)


def _norm(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float, str | None]:
    if norm is None:
        return None, None, 0.0, None
    if norm.eps is None:
        return norm.weight, norm.bias, 0.0, "no_norm"
    return norm.weight, norm.bias, norm.eps, "layer_norm"


def _linear(frame: Frame, node: Linear, target: Target, scheme: str) -> None:
    residual = None if node.residual is None else frame.floats(node.residual)
    whole, start = target.floats, 0
    for part in node.parts:
        at = slice(start, start + part.out_features)
        added = None if residual is None else residual[:, at]
        if len(node.parts) > 1 and whole is not None:
            target = target._replace(floats=whole[:, at])
        x = frame.read(node.x, part.activations)
        part.launch(x, node.activation, added, target, scheme, frame.memory.workspace)
        start = at.stop


def _normalize(frame: Frame, node: Normalize, target: Target, scheme: str) -> None:
    weight, bias, eps, kind = _norm(node.norm)
    assert weight is not None and bias is not None and kind is not None
    normalize(frame.floats(node.x), None, weight, bias, eps, target, scheme, kind)


def _attend_rows(frame: Frame, node: AttendRows, target: Target, scheme: str) -> None:
    qkv, batch = frame.floats(node.qkv)[: frame.tokens], frame.batch
    steps = quantizers_of(node.quantized)
    positions = batch.row_positions
    context = attention_reference.attention(
        qkv, batch.lengths, node.heads, node.scale, node.bias, positions, steps
    )
    _store(context, target)


def _apply(frame: Frame, node: Apply, target: Target, scheme: str) -> None:
    residual = None if node.residual is None else frame.floats(node.residual)
    _store(node.layer(frame.floats(node.x), node.activation, residual), target)


def _rows(frame: Frame, node: Rows, target: Target, scheme: str) -> None:
    _store(node.tensor, target)


def _store(rows: Tensor, target: Target) -> None:
    assert target.floats is not None  # such values are quantized by a launch of their own
    target.floats[: len(rows)] = rows


def _attend(frame: Frame, node: Attend, target: Target, scheme: str) -> None:
    qkv = frame.floats(node.qkv)
    queries = frame.queries[node.head_size]
    positions = None if node.bias is None else frame.memory.positions[: frame.rows]
    attention(
        qkv, queries.blocks, node.heads, node.scale, node.bias, positions, target, scheme,
        queries.config,
    )  # fmt: skip


def _attend_varlen(frame: Frame, node: AttendVarlen, target: Target, scheme: str) -> None:
    qkv, bounds = frame.floats(node.qkv), frame.bounds
    # The plan stores its floats, and quantizes them by a launch of their own.
    assert bounds is not None and target.floats is not None
    starts, longest = bounds
    varlen_attention(qkv, starts, longest, node.heads, node.scale, target.floats)


_LAUNCHES: dict[type[Node], Callable[[Frame, Any, Target, str], None]] = {
    Rows: _rows,
    Embed: _embed,
    Linear: _linear,
    Normalize: _normalize,
    Attend: _attend,
    AttendVarlen: _attend_varlen,
    AttendRows: _attend_rows,
    Apply: _apply,
}
