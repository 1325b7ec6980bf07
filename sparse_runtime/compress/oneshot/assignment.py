"""The best one-to-one assignment: the Hungarian method by shortest augmenting paths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_assignment(gain: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row its own column, so that the sum of ``gain[row, column]`` is the largest.

    Each row is added by the shortest path of reassignments under dual prices (Kuhn 1955; in the
    form of Jonker and Volgenant 1987): O(n^3), with the inner loop over columns in NumPy.

    Args:
        gain: finite float [n, n].

    Returns:
        int64 [n], a permutation.

    Raises:
        ValueError: the matrix is not square, or not finite.
    """
    if gain.ndim != 2 or gain.shape[0] != gain.shape[1] or not np.isfinite(gain).all():
        raise ValueError(f"gain: expected a finite square matrix, got {gain.dtype} {gain.shape}")
    size = gain.shape[0]
    cost = gain.max(initial=0.0) - gain.astype(np.float64)
    row_price, column_price = np.zeros(size), np.zeros(size)
    row_of = np.full(size, -1)
    for row in range(size):
        _add_row(row, cost, row_price, column_price, row_of)
    assigned = np.empty(size, dtype=np.int64)
    assigned[row_of] = np.arange(size)
    return assigned


def _add_row(
    row: int,
    cost: NDArray[np.float64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    row_of: NDArray[np.int64],
) -> None:
    """Give ``row`` a column and move others along the cheapest path; prices stay dual feasible."""
    size = len(row_of)
    distance, came_from = np.full(size, np.inf), np.full(size, -1)
    done = np.zeros(size, dtype=bool)
    at_row, at_column, travelled = row, -1, 0.0
    visited: list[int] = []
    while True:
        through = travelled + cost[at_row] - row_price[at_row] - column_price
        shorter = (through < distance) & ~done
        distance[shorter] = through[shorter]
        came_from[shorter] = at_column
        nearest = int(np.where(done, np.inf, distance).argmin())
        travelled = float(distance[nearest])
        done[nearest] = True
        if row_of[nearest] < 0:
            break
        visited.append(nearest)
        at_row, at_column = int(row_of[nearest]), nearest
    row_price[row] += travelled
    slack = travelled - distance[visited]
    row_price[row_of[visited]] += slack
    column_price[visited] -= slack
    column = nearest
    while came_from[column] >= 0:
        row_of[column] = row_of[came_from[column]]
        column = int(came_from[column])
    row_of[column] = row
