"""Padded inputs on the device: looked at once, then written as a stream of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.padding.operands import FIELDS, Padded, Stream
from ..types import TokenBatch


class PaddedScan:
    """What the host must know of a padded batch: one launch and one copy to the host.

    Args:
        padded: the batch, on one device.
        padding_id: where positions are counted after it (RoBERTa), else None.

    Attributes:
        lengths: real tokens of each row.
        irregular: how many numbers of the mask are neither 0 nor 1.
    """

    def __init__(self, padded: Padded, padding_id: int | None) -> None:
        from ...kernels.padding.scan_triton import scan

        self._padded, self._padding_id = padded, padding_id
        self._on_device = scan(padded, padding_id)
        self._rows = dict(zip(FIELDS, self._on_device.tolist(), strict=True))
        self.lengths: list[int] = self._rows["length"]
        self.irregular = sum(self._rows["irregular"])

    def bounds(self, what: str) -> tuple[int, int] | None:
        """The smallest and largest "id", "type" or "position" of a real token; None: no tokens."""
        if not any(self.lengths):
            return None
        return min(self._rows[f"lowest_{what}"]), max(self._rows[f"highest_{what}"])

    def unpad(self) -> tuple[TokenBatch, dict[str, Tensor]]:
        """The real tokens: the batch, and int64 [tokens] of "word", "token_type" and "position".

        One launch; numbers must have been checked before.
        """
        from ...kernels.padding.unpad_triton import unpad

        rows, columns = self._padded.ids.shape
        tokens, device = sum(self.lengths), self._padded.ids.device
        words, types, positions, at, index = torch.empty(
            5, tokens, dtype=torch.int64, device=device
        ).unbind()
        starts = torch.empty(rows + 1, dtype=torch.int32, device=device)
        stream = Stream(words, types, positions, at, index, starts)
        unpad(self._padded, self._padding_id, self._on_device[0], tokens, stream)
        leads = all(first == 0 < length for first, length in self._firsts())
        batch = TokenBatch(self.lengths, at, index, rows, columns, starts=starts, leads=leads)
        return batch, {"word": words, "token_type": types, "position": positions}

    def _firsts(self) -> zip[tuple[int, int]]:
        return zip(self._rows["first"], self.lengths, strict=True)
