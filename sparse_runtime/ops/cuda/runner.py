"""Running a plan: memory, streams, threads and graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention.schedule import Config, default_config
from ..types import TokenBatch
from .device import interpreting
from .graphs import Capturer, GraphCache, graphs_to_keep, token_bucket, token_buckets
from .machine import machine_of
from .memory import Constants, Frame, Memory
from .plan import Plan
from .schedules import Bounds, Queries, Schedules


class Runner:
    """Runs one plan on one device.

    A plan that can be repeated has one memory for all of its passes, with addresses that graphs may
    hold. Each pass waits, on the device, for the one before. A pass of its own memory is run where
    the shared one would not do: for a sequence longer than the chunk, in a capture of the caller's
    (a graph that is replayed later, beside other passes), and for a plan that runs only once.

    Args:
        plan: what to run.
        device: where.
        dtype: the activations' float type.
        most_rows: rows that the shared memory has.

    Attributes:
        plan: the plan.
        graphs: captured so far; None where there are none.
        memory: the shared one, from the first pass on.
    """

    def __init__(
        self, plan: Plan, device: torch.device, dtype: torch.dtype, most_rows: int
    ) -> None:
        self.plan = plan
        self.graphs: GraphCache | None = None
        self.memory: Memory | None = None
        self._device, self._dtype, self._most_rows = device, dtype, most_rows
        self._lock = Lock()
        self._constants: Constants | None = None
        self._schedules = Schedules(device)
        self._last: torch.cuda.Event | None = None

    def takes(self, batch: TokenBatch) -> bool:
        """Whether the attention biases of the plan reach every position of the batch."""
        return self.plan.span is None or batch.seq_len <= self.plan.span

    def run(self, batch: TokenBatch, ids: tuple[Tensor, ...], *, once: bool = False) -> Tensor:
        """float [tokens, features] of the plan's result.

        Args:
            batch: the sequences, with at least one token.
            ids: int64 [tokens] for each embedding table.
            once: whether no other batch will follow: nothing is kept for it.

        Raises:
            RuntimeError: the current stream is being captured, and the plan has not run before.
        """
        with self._on_device(), self._lock:
            capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            if self._constants is None:
                if capturing:
                    raise RuntimeError(
                        "the model has not run yet: run the same batch once before its stream is "
                        "captured"
                    )
                self._constants = Constants(self.plan, self._device)
            rows = token_bucket(len(batch.index))
            if capturing or once or rows > self._most_rows:
                return self._run_alone(batch, ids, rows)
            return self._run_shared(batch, ids, rows)

    def _run_alone(self, batch: TokenBatch, ids: tuple[Tensor, ...], rows: int) -> Tensor:
        assert self._constants is not None
        memory = Memory(self.plan, [rows], self._constants, self._device, self._dtype)
        frame = self._frame(memory, batch, ids, rows)
        self._launch(frame)
        return self._result(frame)

    def _run_shared(self, batch: TokenBatch, ids: tuple[Tensor, ...], rows: int) -> Tensor:
        if self.memory is None:
            self._prepare()
        assert self.memory is not None
        stream = None
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            self.memory.used_on(stream)
            if self._last is None:
                self._last = torch.cuda.Event()
            else:
                stream.wait_event(self._last)
        try:
            frame = self._frame(self.memory, batch, ids, rows)
            if self.graphs is None:
                self._launch(frame)
            else:
                self.graphs.run((rows, *frame.shape), lambda: self._launch(frame))
            return self._result(frame)
        finally:
            if stream is not None and self._last is not None:
                self._last.record(stream)

    def _prepare(self) -> None:
        assert self._constants is not None
        sizes = token_buckets(self._most_rows)
        self.memory = Memory(self.plan, sizes, self._constants, self._device, self._dtype)
        most = graphs_to_keep()
        if self._device.type == "cuda" and self.plan.capturable and most and not interpreting():
            self.graphs = GraphCache(most, Capturer(self._device), self._wait)

    def _wait(self) -> None:
        """Wait for the last pass."""
        if self._last is not None:
            self._last.synchronize()

    def __del__(self) -> None:
        # Graphs must not be destroyed while they run.
        if self.graphs:
            with suppress(Exception):  # the interpreter may be shutting down
                self._wait()

    def _frame(
        self, memory: Memory, batch: TokenBatch, ids: tuple[Tensor, ...], rows: int
    ) -> Frame:
        """The batch, copied to where launches read it."""
        tokens, queries = len(batch.index), {}
        for size, blocks in memory.schedules.items():
            config = self._attention_config(size, batch.lengths)
            found = self._schedules.get(batch.lengths, config.block_q)
            queries[size] = Queries(config, blocks[: len(found)])
            blocks[: len(found)].copy_(found)
        bounds = None
        if self.plan.bounded:
            found, longest = self._schedules.bounds(batch.lengths)
            bounds = Bounds(memory.starts[: len(found)], longest)
            bounds.starts.copy_(found)
        # A pass that begins with rows has no tables.
        columns, places = [*ids[: self.plan.tables]], [*memory.ids]
        if self.plan.span is not None:
            columns.append(batch.row_positions)
            places.append(memory.positions)
        if columns:
            torch._foreach_copy_([place[:tokens] for place in places], columns)
        return Frame(memory, batch, tokens, rows, queries, bounds)

    def _attention_config(self, head_size: int, lengths: Sequence[int]) -> Config:
        machine = machine_of(self._device)
        return default_config(
            head_size,
            max(lengths),
            sum(length > 0 for length in lengths),
            self.plan.heads[head_size],
            self._dtype,
            machine.capability,
            machine.processors,
        )

    def _launch(self, frame: Frame) -> None:
        from .launches import launch  # imports triton

        for step in self.plan.steps:
            launch(frame, step)

    def _result(self, frame: Frame) -> Tensor:
        return frame.floats(self.plan.result)[: frame.tokens].clone()

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
