"""CUDA graphs: which numbers of tokens share one, and how many are kept."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Protocol

import torch

GRAPHS_VARIABLE = "SPARSE_RUNTIME_CUDA_GRAPHS"
"""Environment variable: how many graphs a model keeps; 0 runs without."""

MOST_GRAPHS = 64
"""How many, where the variable is not set."""

FINE_STEP, FINE_TOKENS = 16, 128
STEPS_PER_DOUBLING = 8
LEAST_BLOCKS = 8
LEAST_SPAN = 64


class Replayable(Protocol):
    """A captured graph."""

    def replay(self) -> None:
        """Enqueue it on the current stream."""


def token_bucket(tokens: int) -> int:
    """The number of rows that ``tokens`` run as: the next multiple of 16 up to 128, then the next
    of eight steps a doubling, so that at most an eighth is added."""
    step = FINE_STEP
    if tokens > FINE_TOKENS:
        step = (1 << (tokens - 1).bit_length()) // (2 * STEPS_PER_DOUBLING)
    return -(-max(tokens, 1) // step) * step


def block_bucket(blocks: int) -> int:
    """The number of query blocks that an attention is launched for: the next power of two, at
    least 8. A block too many costs a program that returns at once."""
    return max(LEAST_BLOCKS, 1 << max(blocks - 1, 0).bit_length())


def sequence_bucket(sequences: int) -> int:
    """The number of sequences that PyTorch's attention is launched for: the next power of two."""
    return 1 << max(sequences - 1, 0).bit_length()


def span_bucket(longest: int) -> int:
    """The longest sequence that PyTorch's attention is launched for: the next power of two, at
    least 64. It divides queries into blocks of 64 or 128, and one too many returns at once."""
    return max(LEAST_SPAN, 1 << (longest - 1).bit_length())


def token_buckets(most: int) -> list[int]:
    """Every bucket up to the one that holds ``most`` tokens."""
    buckets = [token_bucket(1)]
    while buckets[-1] < most:
        buckets.append(token_bucket(buckets[-1] + 1))
    return buckets


def graphs_to_keep() -> int:
    """What the environment says.

    Raises:
        ValueError: the variable is set to something else than a number of at least 0.
    """
    text = os.environ.get(GRAPHS_VARIABLE, "")
    if not text:
        return MOST_GRAPHS
    if not text.isdecimal():
        raise ValueError(f"{GRAPHS_VARIABLE}={text!r}: expected how many graphs to keep, or 0")
    return int(text)


class GraphCache:
    """Graphs by bucket; the least recently used goes first.

    A bucket is launched step by step when it is first seen, which compiles its kernels, and
    captured when it comes back: what comes once costs no capture. A bucket that cannot be captured
    warns once, and nothing is captured from then on.

    Args:
        most: graphs to keep.
        capture: makes a graph of what a function launches, without running it.
        drop: called before a graph is given up; the device may still be running it.
    """

    def __init__(
        self,
        most: int,
        capture: Callable[[Callable[[], None]], Replayable],
        drop: Callable[[], None],
    ) -> None:
        self._most = most
        self._capture = capture
        self._drop = drop
        self._graphs: OrderedDict[Hashable, Replayable] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, launch: Callable[[], None]) -> None:
        """Replay the bucket's graph, or call ``launch``."""
        graph = self._graphs.get(key)
        if graph is None and key in self._seen:
            graph = self._capture_one(key, launch)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.replay()
            return
        launch()
        if self._most:
            self._seen[key] = None
            if len(self._seen) > 4 * self._most:
                self._seen.popitem(last=False)

    def _capture_one(self, key: Hashable, launch: Callable[[], None]) -> Replayable | None:
        try:
            graph = self._capture(launch)
        except RuntimeError as error:
            self._most = 0
            self._seen.clear()
            warnings.warn(
                f"sparse_runtime: runs without CUDA graphs from here on, one could not be "
                f"captured: {error}",
                stacklevel=2,
            )
            return None
        if len(self._graphs) >= self._most:
            self._drop()
            self._graphs.popitem(last=False)
        self._graphs[key] = graph
        return graph


class Capturer:
    """Captures graphs of one device, which share one pool of memory: they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, launch: Callable[[], None]) -> Replayable:
        """A graph of what ``launch`` launches.

        Raises:
            RuntimeError: something in it cannot be captured.
        """
        # torch.cuda.graph would also collect garbage, empty the allocator's cache and wait for the
        # device; in its stricter mode other threads' calls would break the capture.
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launch()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph
