"""How the block-sparse kernel is launched."""

from __future__ import annotations

from typing import NamedTuple


class BlockConfig(NamedTuple):
    block_m: int
    group_m: int
    parts: bool
    num_warps: int
    num_stages: int
