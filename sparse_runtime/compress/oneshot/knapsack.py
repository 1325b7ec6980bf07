"""One option for each item, the least error within a budget: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESOLUTION = 20_000


def choose_options(
    errors: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    *,
    resolution: int = RESOLUTION,
) -> list[int]:
    """Choose an option of each item so that costs stay within a budget and errors sum to the least.

    Dynamic programming over the budget in ``resolution`` steps. Costs are rounded up to whole
    steps, so the budget always holds; whole costs up to ``resolution`` are not rounded at all, and
    then the choice is the best there is. What rounding leaves over is spent afterwards on single
    options that fit.

    Args:
        errors: of each item's options.
        costs: of the same options, not negative.
        budget: for all items together, above 0.
        resolution: steps of the budget.

    Returns:
        The option of each item.

    Raises:
        ValueError: numbers that do not match or are not finite, or no choice fits the budget.
    """
    tables = [_table(*item) for item in zip(errors, costs, strict=True)]
    least = sum(float(cost.min()) for _, cost in tables)
    if not budget > 0 or least > budget * (1 + 1e-12):
        raise ValueError(
            f"budget {budget:g}: the cheapest options cost {least:g} together; give more, or "
            "cheaper options"
        )
    step = _step(tables, budget, resolution)
    steps = int(np.floor(budget / step * (1 + 1e-12)))
    units = [np.ceil(cost / step * (1 - 1e-12)).astype(np.int64) for _, cost in tables]
    chosen = _solve([error for error, _ in tables], units, steps)
    if chosen is None:  # each of the cheapest options fits only unrounded
        chosen = [int(cost.argmin()) for _, cost in tables]
    return _spend(tables, chosen, budget)


def _table(errors: Sequence[float], costs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    error, cost = np.asarray(errors, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    finite = np.isfinite(error).all() and np.isfinite(cost).all()
    if error.shape != cost.shape or not error.size or not finite or (cost < 0).any():
        raise ValueError(
            "options: expected for each item at least one, with a finite error and a finite cost "
            f"of at least 0, got errors {list(errors)} and costs {list(costs)}"
        )
    return error, cost


def _step(tables: Sequence[tuple[np.ndarray, np.ndarray]], budget: float, resolution: int) -> float:
    whole = all((cost == np.round(cost)).all() for _, cost in tables)
    return 1.0 if whole and budget <= resolution else budget / resolution


def _solve(
    errors: Sequence[np.ndarray], units: Sequence[np.ndarray], steps: int
) -> list[int] | None:
    """The exact choice in whole units, or None where nothing fits."""
    best = np.zeros(steps + 1)
    taken = np.zeros((len(errors), steps + 1), dtype=np.int16)
    for item, (error, unit) in enumerate(zip(errors, units, strict=True)):
        following = np.full(steps + 1, np.inf)
        for option in range(len(error)):
            size = int(unit[option])
            if size > steps:
                continue
            value = np.full(steps + 1, np.inf)
            value[size:] = best[: steps + 1 - size] + error[option]
            better = value < following
            following[better], taken[item, better] = value[better], option
        best = following
    if not np.isfinite(best[-1]):
        return None
    chosen, left = [], steps
    for item in range(len(errors) - 1, -1, -1):
        option = int(taken[item, left])
        chosen.append(option)
        left -= int(units[item][option])
    return chosen[::-1]


def _spend(
    tables: Sequence[tuple[np.ndarray, np.ndarray]], chosen: list[int], budget: float
) -> list[int]:
    """Take single options of less error while they fit."""
    chosen = list(chosen)
    left = budget * (1 + 1e-12) - sum(
        float(cost[option]) for (_, cost), option in zip(tables, chosen, strict=True)
    )
    while True:
        best: tuple[float, int, int] | None = None
        for item, (error, cost) in enumerate(tables):
            gain = error[chosen[item]] - error
            fits = (cost - cost[chosen[item]] <= left) & (gain > 0)
            if fits.any():
                option = int(np.where(fits, gain, -np.inf).argmax())
                if best is None or gain[option] > best[0]:
                    best = (float(gain[option]), item, option)
        if best is None:
            return chosen
        _, item, option = best
        left -= float(tables[item][1][option] - tables[item][1][chosen[item]])
        chosen[item] = option
