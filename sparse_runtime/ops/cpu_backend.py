"""The CPU backend: activations in panels of tokens from the embedding to the head.

Operations are recorded (``_C.Forward``) and run together when rows are asked for, so that each
can hand its result over in the form that its reader wants (docs/kernels/encoder.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention.reference import attention
from ..spec import QuantizedAttention
from .backends import Activation, Backend, Recorder
from .cpu_panels import ISA, PanelLinear
from .cpu_parts import part_tokens
from .native import address, extension
from .reference import quantizers_of
from .types import Norm, PreparedLinear, TokenBatch

FAR_CORES_VARIABLE = "SPARSE_RUNTIME_FAR_CORES"


@cache
def _far_cores() -> bool:
    """Whether cores may be far from each other: those of a virtual machine move between dies."""
    said = os.environ.get(FAR_CORES_VARIABLE, "")
    if said not in ("", "0", "1"):
        raise ValueError(f"{FAR_CORES_VARIABLE}: expected 0 or 1, got {said!r}")
    return bool(int(said)) if said else extension().cpu_features()["hypervisor"]


@dataclass(frozen=True)
class PanelActivation:
    """A recorded value of one forward pass.

    Attributes:
        run: the pass, and what must stay alive until it has run.
        value: the ``_C.PanelValue``.
    """

    run: Pass
    value: Any


class Pass:
    """One ``_C.Forward`` with the tensors whose addresses it holds."""

    def __init__(self, batch: TokenBatch, pool: Any) -> None:
        self.batch = batch
        self.tokens = len(batch.index)
        self.lengths = [length for length in batch.lengths if length]  # masked rows have none
        starts = [0, *accumulate(self.lengths)][:-1]
        self.positions = batch.row_positions[starts].tolist()
        self.forward = extension().Forward(
            self.lengths, self.positions, torch.get_num_threads(), ISA, pool, _far_cores()
        )
        self.kept: list[object] = []

    def is_consecutive(self) -> bool:
        """Whether each sequence's tokens sit side by side in the padded input."""
        at, end = self.batch.row_positions, 0
        for length, first in zip(self.lengths, self.positions, strict=True):
            end += length
            if int(at[end - 1]) - first != length - 1:
                return False
        return True

    def from_rows(self, rows: Tensor, norm: Any = None) -> PanelActivation:
        """Float [tokens, features] -> a value."""
        rows = rows.to(torch.float32).contiguous()
        self.kept.append(rows)
        value = self.forward.from_rows(address(rows), rows.shape[1], rows.shape[1], norm)
        return PanelActivation(self, value)

    def to_rows(self, x: PanelActivation, times: list[tuple[str, float]] | None = None) -> Tensor:
        """Run what is recorded; float32 [tokens, features]. Each stage's time goes to ``times``."""
        rows = torch.empty(self.tokens, x.value.features, dtype=torch.float32, device="cpu")
        self.forward.to_rows(x.value, address(rows), rows.shape[1])
        stages = self.forward.run(times is not None)
        if times is not None:
            times += stages
        self.kept.clear()
        return rows


@dataclass(frozen=True)
class Recording:
    """The operations of a pass, to be run over other tokens.

    Attributes:
        handle: the ``_C.Recording``.
        kept: what its addresses point to.
    """

    handle: Any
    kept: list[object]


class CpuBackend(Backend):
    """C++ kernels over panels of tokens; layers that they do not run take the way through rows."""

    name = "cpu"

    def __init__(self, device: torch.device, dtype: torch.dtype, choice: str) -> None:
        super().__init__(device, dtype, choice)
        self._pool = extension().WorkspacePool()
        self.stage_times: list[tuple[str, float]] | None = None
        """Where not None, every stage's label and seconds are appended."""
        self._norms: dict[int, tuple[Norm, Any]] = {}
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self._recordings: dict[Recorder, Recording] = {}
        self._part_tokens: dict[int, int] = {}  # by threads

    def parts(
        self, batch: TokenBatch, layers: Sequence[Sequence[PreparedLinear]]
    ) -> Iterator[tuple[TokenBatch, slice]]:
        """As :meth:`Backend.parts`: about as long as the caches hold."""
        threads = torch.get_num_threads()
        if threads not in self._part_tokens:  # the layers are always the same
            self._part_tokens[threads] = part_tokens(layers, threads)
        return batch.split(self._part_tokens[threads], nearest=True)

    def encode(self, batch: TokenBatch, ids: tuple[Tensor, ...], record: Recorder) -> Tensor:
        """As :meth:`Backend.encode`; a pass that can be run again is recorded once."""
        known = self._recordings.get(record)
        if known is not None:
            return self._run_again(known, batch, ids)
        x = record(batch, ids)
        handle = x.run.forward.recording(x.value)
        if handle is not None:
            self._recordings[record] = Recording(handle, x.run.kept.copy())
        return self.to_tokens(x)

    def _run_again(self, known: Recording, batch: TokenBatch, ids: tuple[Tensor, ...]) -> Tensor:
        columns = [column.contiguous() for column in ids]
        rows = torch.empty(
            len(batch.index), known.handle.features, dtype=torch.float32, device="cpu"
        )
        stages = known.handle.run(
            [length for length in batch.lengths if length],
            [address(column) for column in columns],
            address(rows),
            rows.shape[1],
            torch.get_num_threads(),
            ISA,
            self._pool,
            self.stage_times is not None,
            _far_cores(),
        )
        if self.stage_times is not None:
            self.stage_times += stages
        return rows.to(self.dtype)

    def embed(
        self,
        batch: TokenBatch,
        ids: tuple[Tensor, ...],
        tables: tuple[Tensor, ...],
        norm: Norm | None,
    ) -> Activation:
        run = Pass(batch, self._pool)
        columns = [column.contiguous() for column in ids]
        rows = [self._table(table) for table in tables]
        run.kept += [columns, rows]
        value = run.forward.embed(
            [address(table) for table in rows],
            [table.shape[0] for table in rows],
            [address(column) for column in columns],
            rows[0].shape[1],
            self._norm(norm),
        )
        return PanelActivation(run, value)

    def linear(
        self,
        x: Activation,
        layer: PreparedLinear | nn.Module,
        *,
        activation: str | None = None,
        residual: Activation | None = None,
        norm: Norm | None = None,
    ) -> Activation:
        run = x.run
        if not isinstance(layer, PanelLinear):
            added = None if residual is None else self.to_tokens(residual)
            return run.from_rows(layer(self.to_tokens(x), activation, added), self._norm(norm))
        value = run.forward.linear(
            x.value,
            layer.handle,
            activation or "none",
            None if residual is None else residual.value,
            self._norm(norm),
        )
        return PanelActivation(run, value)

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
        run = qkv.run
        quantizers = None if quantized is None else panel_quantizers(quantized)
        if quantized is not None and (
            quantizers is None or (bias is not None and not run.is_consecutive())
        ):
            rows, at, steps = self.to_tokens(qkv), batch.row_positions, quantizers_of(quantized)
            return run.from_rows(attention(rows, batch.lengths, heads, scale, bias, at, steps))
        if bias is None:
            value = run.forward.attention(qkv.value, heads, scale, quantizers=quantizers)
            return PanelActivation(run, value)
        if not run.is_consecutive():
            return run.from_rows(attend_rows(self.to_tokens(qkv), batch, heads, scale, bias))
        by_key = self._bias_by_key(bias)
        span = by_key.shape[1]
        value = run.forward.attention(qkv.value, heads, scale, address(by_key), span, quantizers)
        run.kept.append(by_key)
        return PanelActivation(run, value)

    def from_tokens(self, batch: TokenBatch, tokens: Tensor) -> Activation:
        return Pass(batch, self._pool).from_rows(tokens)

    def to_tokens(self, x: Activation) -> Tensor:
        return x.run.to_rows(x, self.stage_times).to(self.dtype)

    def _norm(self, norm: Norm | None) -> Any:
        if norm is None:
            return None
        known = self._norms.get(id(norm))
        if known is None:
            weight, bias = norm.weight.float().contiguous(), norm.bias.float().contiguous()
            handle = extension().PanelNorm(address(weight), address(bias), weight.numel(), norm.eps)
            known = self._norms[id(norm)] = (norm, handle)
        return known[1]

    def _table(self, table: Tensor) -> Tensor:
        """float32, row-major; one that had to be converted is kept."""
        if table.dtype == torch.float32 and table.is_contiguous():
            return table
        known = self._tables.get(id(table))
        if known is None:
            known = self._tables[id(table)] = (table, table.float().contiguous())
        return known[1]

    def _bias_by_key(self, bias: Tensor) -> Tensor:
        """float32 [heads, keys, queries] of a bias [heads, queries, keys]; the last is kept."""
        known = self._biases.get(id(bias))
        if known is None:
            self._biases = {id(bias): (bias, bias.float().transpose(1, 2).contiguous())}
            known = self._biases[id(bias)]
        return known[1]


@cache
def panel_quantizers(quantized: QuantizedAttention) -> Any:
    """The ``_C.AttentionQuantizers``; None where a product has a side in floats."""
    steps = quantizers_of(quantized) or {}
    products = ("query", "key", "probabilities", "value")
    if not all(name in steps for name in products):
        return None
    return extension().AttentionQuantizers(
        *(steps.get(name) for name in (*products, "scores", "context"))
    )


def attend_rows(qkv: Tensor, batch: TokenBatch, heads: int, scale: float, bias: Tensor) -> Tensor:
    """PyTorch's attention on rows, for sequences with padding between their tokens."""
    outputs, start = [], 0
    for length in batch.lengths:
        stop = start + length
        q, k, v = qkv[start:stop].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        at = batch.row_positions[start:stop]
        mask = bias[:, at.unsqueeze(1), at].to(qkv.dtype)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        outputs.append(context.transpose(0, 1).flatten(1))
        start = stop
    return torch.cat(outputs)
