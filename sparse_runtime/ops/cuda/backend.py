"""The CUDA backend: a plan of launches is made once and run for any batch.

docs/kernels/cuda_encoder.md describes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor, nn

from ...kernels.padding.operands import Padded
from ...spec import QuantizedAttention
from ..backends import Activation, Backend, Recorder, SideBySide
from ..types import LinearRequest, LinearWeight, Norm, PreparedLinear, TokenBatch
from .attention_choice import AttentionChoice
from .device import interpreting, refuses, unavailable
from .graphs import GRAPHS_VARIABLE, graphs_to_keep, token_buckets
from .input_orders import input_order
from .linear import CudaLinear
from .padding import PaddedScan
from .plan import Plan, make_plan
from .runner import Runner
from .values import (
    Apply,
    Attend,
    AttendRows,
    AttendVarlen,
    Embed,
    Linear,
    Node,
    Normalize,
    Pass,
    Rows,
    Value,
)

CHUNK = 4096
"""Tokens that run through the layers at a time: of more, what one launch leaves the next would not
stay in the L2 cache of a large GPU; fewer would cost more launches than that saves
(docs/kernels/cuda_encoder.md)."""

MOST_HEAD_SIZE = 256
"""A program of the attention kernel holds whole rows of one head."""


class CudaBackend(Backend):
    """Triton kernels with quantized rows between them.

    Passes run on the current stream. One pass at a time has the model's memory: passes of several
    threads and streams wait for each other on the device, not on the host.
    """

    name = "cuda"

    def __init__(self, device: torch.device, dtype: torch.dtype, choice: str) -> None:
        if device.type != "cuda" and not interpreting():
            raise RuntimeError(f"backend 'cuda' runs on cuda, got device {device}; use 'auto'")
        reason = unavailable()
        if reason is None and str(device) == "cuda":  # the current one, even when another is later
            device = torch.device("cuda", torch.cuda.current_device())
        reason = reason or refuses(device)
        if reason is not None:
            raise RuntimeError(f"backend 'cuda' cannot run on {device}: {reason}; use 'auto'")
        graphs_to_keep()  # an error in the environment shows now
        super().__init__(device, dtype, choice)
        self._attention = AttentionChoice(device, dtype)
        self._lock = Lock()
        self._runners: dict[Recorder, Runner] = {}
        self._reordered = 0

    def input_order(self, reader: LinearWeight, unit: int | None) -> Tensor | None:
        order = input_order(LinearRequest((reader,), self.device, self.dtype), unit)
        self._reordered += order is not None
        return order

    def parts(
        self, batch: TokenBatch, layers: Sequence[Sequence[PreparedLinear]]
    ) -> Iterator[tuple[TokenBatch, slice]]:
        """As :meth:`Backend.parts`: of at most CHUNK tokens, or one longer sequence."""
        return batch.split(CHUNK)

    def encode(self, batch: TokenBatch, ids: tuple[Tensor, ...], record: Recorder) -> Tensor:
        """As :meth:`Backend.encode`; a pass that can be run again is planned once.

        Raises:
            RuntimeError: the current stream is being captured, and no such pass has run before.
        """
        runner = self._runners.get(record)
        if runner is not None and runner.takes(batch):
            return runner.run(batch, ids)
        made = self._runner(record(batch, ids))
        if runner is None and made.plan.repeatable:
            with self._lock:
                kept = self._runners.setdefault(record, made)
            if kept.takes(batch):
                return kept.run(batch, ids)
        return made.run(batch, ids, once=True)

    def scan(self, padded: Padded, padding_id: int | None) -> PaddedScan | None:
        if any(tensor is not None and tensor.device != self.device for tensor in padded):
            return None
        return PaddedScan(padded, padding_id)

    def embed(
        self,
        batch: TokenBatch,
        ids: tuple[Tensor, ...],
        tables: tuple[Tensor, ...],
        norm: Norm | None,
    ) -> Activation:
        return Value(Pass(batch, ids), Embed(tables, norm), tables[0].shape[1])

    def linear(
        self,
        x: Activation,
        layer: PreparedLinear | nn.Module,
        *,
        activation: str | None = None,
        residual: Activation | None = None,
        norm: Norm | None = None,
    ) -> Activation:
        features = _out_features(layer)
        if isinstance(layer, PreparedLinear):
            self._check(layer, x, activation, residual)
        parts = _cuda_parts(layer)
        node: Node = Apply(layer, x, activation, residual)
        if parts is not None:
            node = Linear(parts, x, activation, residual)
        y = Value(x.run, node, features)
        return y if norm is None else replace(y, node=Normalize(y, norm))

    def attention(
        self,
        qkv: Activation,
        batch: TokenBatch,
        *,
        heads: int,
        scale: float,
        bias: Tensor | None = None,
        quantized: QuantizedAttention | None = None,
    ) -> Activation:
        features = qkv.features // 3
        node: Node = AttendRows(qkv, heads, scale, bias, quantized)
        if self._attention_refuses(features // heads, quantized) is None:
            node = Attend(qkv, heads, scale, bias)
            if self._attention.takes(features // heads, bias is not None):
                node = AttendVarlen(qkv, heads, scale)
        return Value(qkv.run, node, features)

    def from_tokens(self, batch: TokenBatch, tokens: Tensor) -> Activation:
        return Value(Pass(batch, ()), Rows(tokens.to(self.dtype)), tokens.shape[1])

    def to_tokens(self, x: Activation) -> Tensor:
        if not isinstance(x.node, Rows):
            rows = self._runner(x).run(x.run.batch, x.run.ids, once=True)
            x.node = Rows(rows)  # what is recorded from it on begins there
        return x.node.tensor

    def pool(self, tokens: Tensor, batch: TokenBatch, modes: tuple[str, ...]) -> Tensor | None:
        from ...kernels.padding.pool_triton import pool

        if batch.starts is None:
            return None
        return pool(tokens, batch.starts.to(torch.int32), batch.row_positions, modes)

    def _repad(self, tokens: Tensor, index: Tensor, rows: int) -> Tensor:
        from ...kernels.padding.repad_triton import repad

        return repad(tokens, index, rows)

    def attention_note(
        self, head_size: int, quantized: QuantizedAttention | None, bias: bool = False
    ) -> str | None:
        reason = self._attention_refuses(head_size, quantized)
        if reason is None:
            return self._attention.note(head_size, bias)
        return f"plain PyTorch, sequence by sequence, and no CUDA graphs; our kernel: {reason}"

    def remarks(self) -> list[str]:
        most = graphs_to_keep()
        graphs = f"up to {most}" if most else f"none, {GRAPHS_VARIABLE}=0"
        if interpreting():
            graphs = "none, Triton interprets its kernels"
        found = [f"CUDA graphs: {graphs}"]
        for runner in self._runners.values():
            found.append(f"launches of a pass: {launches_text(runner.plan)}")
        if self._reordered:
            found.append(f"channels in another order, for 2:4: inputs of {self._reordered} layers")
        return found

    def _attention_refuses(
        self, head_size: int, quantized: QuantizedAttention | None
    ) -> str | None:
        """Why our attention kernel does not take such heads, or None."""
        if quantized is not None:
            return "its products are quantized"
        if head_size > MOST_HEAD_SIZE:
            return f"takes heads of up to {MOST_HEAD_SIZE} features"
        return None

    def _runner(self, result: Value) -> Runner:
        return Runner(make_plan(result, self.dtype.itemsize), self.device, self.dtype, CHUNK)

    def _check(
        self, layer: PreparedLinear, x: Value, activation: str | None, residual: Value | None
    ) -> None:
        """As the layer itself checks what it is called with: launches check nothing."""
        rows = torch.empty(0, x.features, device=self.device)
        added = None if residual is None else rows.new_empty(0, residual.features)
        layer.check(rows, activation, added)


def _cuda_parts(layer: PreparedLinear | nn.Module) -> tuple[CudaLinear, ...] | None:
    """The layers to be launched, side by side; None where one runs on rows of floats only."""
    parts = list(layer.parts) if isinstance(layer, SideBySide) else [layer]
    found = tuple(part for part in parts if isinstance(part, CudaLinear))
    return found if len(found) == len(parts) else None


def launches_text(plan: Plan) -> str:
    """How many there are, by numbers of tokens: "85, from 513 tokens 97"."""
    counts = [(rows, plan.launches(rows)) for rows in token_buckets(CHUNK)]
    text, before = str(counts[0][1]), counts[0]
    for rows, count in counts[1:]:
        if count != before[1]:
            text += f", from {before[0] + 1} tokens {count}"
        before = rows, count
    return text


def _out_features(layer: PreparedLinear | nn.Module) -> int:
    """Outputs of a prepared layer, or of a module that holds a ``weight`` [out, in]."""
    if isinstance(layer, PreparedLinear):
        return layer.out_features
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
