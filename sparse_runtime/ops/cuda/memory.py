"""The tensors that the launches of a plan read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.attention.schedule import Config
from ...kernels.linear.configs import Workspace
from ...kernels.linear.operands import Quantized, Target
from ...spec import ActivationSpec
from ..types import TokenBatch
from .graphs import block_bucket, sequence_bucket
from .plan import Plan, Step, stride_of
from .schedules import Bounds, Queries
from .stacked import row_quantizer
from .values import Form, Value


class Constants:
    """Scales and zero points of the static quantizations in a plan, on the device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._tensors: dict[ActivationSpec, tuple[Tensor, Tensor | None]] = {}
        for spec in plan.specs:
            if spec.scheme == "static":
                how = row_quantizer(spec)
                zero = torch.tensor([how.zero], dtype=torch.int32, device=device)
                scale = torch.tensor([how.scale], dtype=torch.float32, device=device)
                self._tensors[spec] = scale, zero if how.has_zero_points else None

    def of(self, spec: ActivationSpec) -> tuple[Tensor, Tensor | None]:
        """float32 [1] and int32 [1], the latter None where 0 is stored as 0."""
        return self._tensors[spec]


class Memory:
    """Memory of one plan, for batches of some sizes.

    Args:
        plan: what runs in it.
        sizes: numbers of rows (buckets) that batches run as.
        constants: the plan's.
        device: where it lies.
        dtype: the activations' float type.

    Attributes:
        ids: int64 [tables, rows], valid ids everywhere.
        positions: int64 [rows].
        schedules: int32 [blocks, 3] for each size of heads.
        starts: int32, for PyTorch's attention: where sequences begin, and the end.
        arena: bytes for every value of the plan.
        workspace: of the linear layers.
        ranges: int32 [2 * rows], zeros between launches.
        counters: int32, zeros between launches.
    """

    def __init__(
        self,
        plan: Plan,
        sizes: Sequence[int],
        constants: Constants,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        most = max(sizes)
        self.plan, self.constants, self.dtype = plan, constants, dtype
        # Written by every later pass, which inference tensors cannot be outside of that mode.
        with torch.inference_mode(False):
            self.ids = torch.zeros(plan.tables, most, dtype=torch.int64, device=device)
            self.positions = torch.zeros(most, dtype=torch.int64, device=device)
            blocks = block_bucket(most)  # sequences of one token have a block each
            self.schedules = {
                size: torch.zeros(blocks, 3, dtype=torch.int32, device=device)
                for size in sorted(plan.heads)
            }
            most_starts = sequence_bucket(most) + 1 if plan.bounded else 0
            self.starts = torch.zeros(most_starts, dtype=torch.int32, device=device)
            self.arena = torch.empty(plan.bytes_per_token * most, dtype=torch.uint8, device=device)
            self.ranges = torch.zeros(2 * most, dtype=torch.int32, device=device)
            self.counters = torch.zeros(blocks, dtype=torch.int32, device=device)
            self.workspace = _workspace(plan, sizes, device)
        self._streams: set[int] = set()

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        own = [self.ids, self.positions, self.starts, self.arena, self.ranges, self.counters]
        own += self.schedules.values()
        return own + [tensor for tensor in self.workspace if tensor is not None]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory, once it is given up, until ``stream`` is done with it."""
        if stream.cuda_stream not in self._streams:
            self._streams.add(stream.cuda_stream)
            for tensor in self.tensors:
                tensor.record_stream(stream)


def _workspace(plan: Plan, sizes: Sequence[int], device: torch.device) -> Workspace:
    parts = {part for node in plan.linears for part in node.parts}
    needs = [part.workspace_needs(size) for part in parts for size in sizes]
    partials = max((need for need, _ in needs), default=0)
    counters = max((need for _, need in needs), default=0)
    return Workspace(
        torch.empty(partials, dtype=torch.float32, device=device) if partials else None,
        torch.zeros(max(counters, 1), dtype=torch.int32, device=device),
    )


@dataclass(frozen=True)
class Frame:
    """One batch in a memory.

    Attributes:
        memory: where.
        batch: the sequences.
        tokens: real rows.
        rows: rows that are computed: the bucket.
        queries: by the size of its heads, how an attention runs.
        bounds: how attentions in PyTorch's kernel run; None where there are none.
    """

    memory: Memory
    batch: TokenBatch
    tokens: int
    rows: int
    queries: Mapping[int, Queries]
    bounds: Bounds | None = None

    @property
    def shape(self) -> tuple[tuple[Config | int, int], ...]:
        """What beside ``rows`` decides which launches are made: query blocks and their tiles;
        for PyTorch's attention the longest sequence and their number."""
        blocks = tuple((queries.config, len(queries.blocks)) for queries in self.queries.values())
        if self.bounds is None:
            return blocks
        return (*blocks, (self.bounds.longest, len(self.bounds.starts)))

    def floats(self, value: Value) -> Tensor:
        """[rows, features] of the float type."""
        return self._rows(value, None, self.memory.dtype)

    def quantized(self, value: Value, spec: ActivationSpec) -> Quantized:
        """The value as a linear layer reads it."""
        storage = self.memory.plan.stored[value, spec]
        stride, q = stride_of(value.features), self._rows(value, spec, torch.int8)
        if storage.scale is None:
            return Quantized(q, stride, *self.memory.constants.of(spec), 0)
        scale = self._bytes(storage.scale.offset, storage.scale.size).view(torch.float32)
        zero = None
        if storage.zero is not None:
            zero = self._bytes(storage.zero.offset, storage.zero.size).view(torch.int32)
        return Quantized(q, stride, scale, zero, 1)

    def read(self, value: Value, form: Form) -> Quantized | Tensor:
        """The value in a form that is stored."""
        return self.floats(value) if form is None else self.quantized(value, form)

    def target(self, step: Step) -> tuple[Target, str]:
        """Where a step's result goes, and the scheme by which its launch quantizes it."""
        spec = step.fused if step.quantizes is None else step.quantizes
        value, memory = step.value, self.memory
        floats = self.floats(value) if (value, None) in memory.plan.stored else None
        target = Target(floats, stride_of(value.features))
        if spec is None:
            return target, "none"
        how, stored = row_quantizer(spec), self.quantized(value, spec)
        target = target._replace(
            q=stored.q, q_stride=stored.q_stride, scale=stored.scale, zero=stored.zero
        )
        if how.scheme != "static":
            ranges = memory.ranges[: 2 * self.rows].view(2, self.rows)
            target = target._replace(ranges=ranges, counters=memory.counters)
        return target, how.scheme

    def _rows(self, value: Value, form: Form, dtype: torch.dtype) -> Tensor:
        place = self.memory.plan.stored[value, form].rows
        stride = stride_of(value.features)
        whole = self._bytes(place.offset, place.size).view(dtype).view(self.rows, stride)
        return whole[:, : value.features]

    def _bytes(self, offset: int, size: int) -> Tensor:
        return self.memory.arena[offset * self.rows : (offset + size) * self.rows]
