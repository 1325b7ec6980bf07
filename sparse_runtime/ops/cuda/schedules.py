"""Which query blocks the attentions of a batch have: computed on the host, kept on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.attention.schedule import Config, query_blocks
from .graphs import block_bucket

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


class Schedules:
    """Schedules on one device, the latest ones kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: list[Tensor] = []
        self._known: OrderedDict[tuple[int, tuple[int, ...]], Tensor] = OrderedDict()

    def get(self, lengths: Sequence[int], block_q: int) -> Tensor:
        """The query blocks of a batch on the device, filled up to their bucket.

        Args:
            lengths: tokens of each sequence in the stream.
            block_q: queries of one program.

        Raises:
            RuntimeError: the current stream is being captured, and these lengths are new: they
                cannot be copied then.
        """
        key = (block_q, tuple(lengths))
        capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        known = self._known.get(key)
        if known is None:
            if capturing:
                raise RuntimeError(
                    "these sequence lengths are new, and cannot be copied to the device while the "
                    "stream is being captured: run the same batch once before the capture"
                )
            known = self._known[key] = self._copy(key[1], block_q)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if capturing:
            self._captured.append(known)  # the caller's graph reads it at every replay
        elif known.is_cuda:
            # Made on one stream and read on another: its memory must outlive the read.
            known.record_stream(torch.cuda.current_stream(self._device))
        return known

    def _copy(self, lengths: tuple[int, ...], block_q: int) -> Tensor:
        needed = sum(-(-length // block_q) for length in lengths)
        blocks = query_blocks(list(lengths), block_q, block_bucket(needed))
        if self._device.type != "cuda":
            return blocks
        # Waited for: a pass on another stream may read it next.
        return blocks.to(self._device)
