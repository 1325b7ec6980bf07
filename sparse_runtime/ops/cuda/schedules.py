"""Which query blocks an attention has: computed on the host, kept on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .graphs import block_bucket

KEPT = 32
"""Schedules kept on the device: batches of the same lengths come back."""


def query_blocks(lengths: Sequence[int], block: int) -> Tensor:
    """int32 [blocks, 3]: first query row, first and end row of its sequence, up to the bucket.

    The longest sequences come first: their programs take longest. Rows of zeros fill the bucket.

    Args:
        lengths: tokens of each sequence in the stream.
        block: queries of one program.
    """
    sizes = np.asarray(lengths, dtype=np.int64).reshape(-1)
    ends = sizes.cumsum()
    order = np.argsort(-sizes, kind="stable")
    counts = -(-sizes[order] // block)
    total = int(counts.sum())
    starts = np.repeat((ends - sizes)[order], counts)
    nth = np.arange(total) - np.repeat(counts.cumsum() - counts, counts)
    blocks = np.zeros((block_bucket(total), 3), dtype=np.int32)
    blocks[:total, 0] = starts + nth * block
    blocks[:total, 1] = starts
    blocks[:total, 2] = np.repeat(ends[order], counts)
    return torch.from_numpy(blocks)


class Schedules:
    """Schedules on one device, the latest ones kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: OrderedDict[tuple[int, tuple[int, ...]], Tensor] = OrderedDict()

    def get(self, lengths: Sequence[int], block: int) -> Tensor:
        """:func:`query_blocks` on the device.

        Raises:
            RuntimeError: the current stream is being captured, and these lengths are new: they
                cannot be copied then.
        """
        key = (block, tuple(lengths))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._copy(query_blocks(lengths, block))
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known

    def _copy(self, blocks: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return blocks
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "these sequence lengths are new, and cannot be copied to the device while the "
                "stream is being captured: run the same batch once before the capture"
            )
        return blocks.pin_memory().to(self._device, non_blocking=True)
