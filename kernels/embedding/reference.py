"""The sum of embedding rows of each token."""

from __future__ import annotations

from torch import Tensor


def embed(ids: tuple[Tensor, ...], tables: tuple[Tensor, ...]) -> Tensor:
    """Look up and add, in the order given.

    Args:
        ids: int64 [tokens] for each table.
        tables: float [rows, features] each.

    Returns:
        float [tokens, features].
    """
    total = tables[0][ids[0]]
    for index, table in zip(ids[1:], tables[1:], strict=True):
        total = total + table[index]
    return total
