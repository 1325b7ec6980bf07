"""Random numbers of one text in one epoch, whatever batch it is in."""

from __future__ import annotations

import torch

_MOST = 2**63


def text_generator(seed: int, epoch: int, number: int) -> torch.Generator:
    """A generator that the run's seed, the epoch and the text's number alone decide."""
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + number
    return torch.Generator().manual_seed(mixed % _MOST)  # torch takes 64 bits
