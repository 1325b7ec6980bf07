"""What the attentions of a batch go by: computed on the host, kept on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.attention.schedule import Config, query_blocks
from .graphs import block_bucket, sequence_bucket, span_bucket

KEPT = 32
"""Schedules kept on the device: batches of the same lengths come back."""


class Queries(NamedTuple):
    """How the attentions with heads of one size run.

    Attributes:
        config: the kernel's tiles.
        blocks: int32 [bucket of blocks, 3] on the device.
    """

    config: Config
    blocks: Tensor


class Bounds(NamedTuple):
    """How attentions in PyTorch's kernel run.

    Attributes:
        starts: int32 [bucket of sequences + 1] on the device: where each begins, and the end, which
            what fills up the bucket repeats: sequences without tokens.
        longest: tokens that no sequence exceeds, a bucket too.
    """

    starts: Tensor
    longest: int


class Schedules:
    """Schedules and bounds on one device, the latest ones kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: list[Tensor] = []
        self._known: OrderedDict[tuple[int | None, tuple[int, ...]], Tensor] = OrderedDict()

    def get(self, lengths: Sequence[int], block_q: int) -> Tensor:
        """The query blocks of a batch on the device, filled up to their bucket.

        Args:
            lengths: tokens of each sequence in the stream.
            block_q: queries of one program.

        Raises:
            RuntimeError: the current stream is being captured, and these lengths are new: they
                cannot be copied then.
        """

        def make() -> Tensor:
            needed = sum(-(-length // block_q) for length in lengths)
            return query_blocks(list(lengths), block_q, block_bucket(needed))

        return self._get((block_q, tuple(lengths)), make)

    def bounds(self, lengths: Sequence[int]) -> Bounds:
        """Where the sequences of a batch begin, on the device, filled up to their bucket.

        Args:
            lengths: tokens of each sequence in the stream.

        Raises:
            RuntimeError: as of :meth:`get`.
        """
        found = self._get((None, tuple(lengths)), lambda: sequence_starts(lengths))
        return Bounds(found, span_bucket(max(lengths)))

    def _get(self, key: tuple[int | None, tuple[int, ...]], make: Callable[[], Tensor]) -> Tensor:
        capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        known = self._known.get(key)
        if known is None:
            if capturing:
                raise RuntimeError(
                    "these sequence lengths are new, and cannot be copied to the device while the "
                    "stream is being captured: run the same batch once before the capture"
                )
            # Waited for: a pass on another stream may read it next.
            known = self._known[key] = make().to(self._device)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if capturing:
            self._captured.append(known)  # the caller's graph reads it at every replay
        elif known.is_cuda:
            # Made on one stream and read on another: its memory must outlive the read.
            known.record_stream(torch.cuda.current_stream(self._device))
        return known


def sequence_starts(lengths: Sequence[int]) -> Tensor:
    """int32 [bucket + 1]: where each sequence that has tokens begins, then the end."""
    kept = torch.tensor([length for length in lengths if length > 0])
    starts = torch.full((sequence_bucket(len(kept)) + 1,), int(kept.sum()), dtype=torch.int32)
    starts[: len(kept)] = kept.cumsum(0) - kept
    return starts
