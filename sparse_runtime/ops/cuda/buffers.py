"""Memory of a plan: buffers that are alive at different times share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Buffer:
    """Memory proportional to the number of tokens.

    Attributes:
        size: bytes a token.
        first: the step that writes it.
        last: the last step that reads it; it is alive from ``first`` to ``last``, both included.
        offset: bytes a token in front of it.
    """

    size: int
    first: int
    last: int
    offset: int = field(default=-1)

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


def place(buffers: Iterable[Buffer]) -> int:
    """Give each buffer an offset such that those which meet do not overlap.

    The largest first, each at the lowest place that is free for as long as it lives. Offsets count
    bytes a token, so that one placement serves every number of tokens.

    Returns:
        bytes a token of all together.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        offset = 0
        for other in sorted((p for p in placed if p.meets(buffer)), key=lambda b: b.offset):
            if offset + buffer.size <= other.offset:
                break
            offset = max(offset, other.offset + other.size)
        buffer.offset = offset
        placed.append(buffer)
    return max((buffer.offset + buffer.size for buffer in placed), default=0)
