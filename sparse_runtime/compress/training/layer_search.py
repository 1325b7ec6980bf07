"""An option for every matrix by itself, under a limit on measured latency or any other cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .one_shot_scores import OPTIONS, OneShot, Option, Scored, losses_alone

# Steps of the budget in which costs are counted.
_RESOLUTION = 4000


def search_layers(
    linears: Mapping[str, nn.Linear],
    evaluate: Callable[[], float],
    cost: Callable[[str, Option], float],
    limit: float,
    *,
    options: Sequence[Option] = OPTIONS,
    losses: Mapping[str, Mapping[Option, float]] | None = None,
    top: int = 5,
    progress: bool = False,
) -> list[Scored]:
    """Choose an option for every matrix by itself.

    There are too many candidates to score. The loss of each matrix and option is measured alone,
    the least sum of losses under the limit is found by dynamic programming, for this limit and for
    slightly smaller ones, and what comes out is scored as a whole.

    Args:
        linears: by name; they are as before when it returns.
        evaluate: score of the model as it stands, higher is better.
        cost: of one matrix with one option: seconds that were measured, bytes, multiplications.
        limit: on the sum of the costs.
        options: to choose from.
        losses: matrix -> option -> loss, if they are known already; None measures them, with one
            evaluation for each matrix and option.
        top: how many to give back at most.
        progress: show a progress bar.

    Returns:
        The best first.

    Raises:
        ValueError: even the cheapest options together cost more than ``limit``.
    """
    costs = {name: [float(cost(name, option)) for option in options] for name in linears}
    least = sum(min(row) for row in costs.values())
    if least > limit:
        raise ValueError(f"limit {limit}: even the cheapest options cost {least:g} together")
    model = OneShot(linears, evaluate)
    if losses is None:
        losses = losses_alone(model, {name: name for name in linears}, options, progress)
    table = {name: [losses[name][option] for option in options] for name in linears}
    found: list[dict[str, int]] = []
    for step in range(4 * top):
        chosen = _least_loss(table, costs, limit - (limit - least) * step / (20 * top))
        if chosen is not None and chosen not in found:
            found.append(chosen)
    scored = []
    for chosen in found[:top]:
        configuration = {name: options[i] for name, i in chosen.items()}
        total = sum(costs[name][i] for name, i in chosen.items())
        scored.append(Scored(configuration, total, model.score(configuration)))
    return sorted(scored, key=lambda one: (-one.score, one.cost))


def _least_loss(
    losses: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]], limit: float
) -> dict[str, int] | None:
    """Index of an option for each matrix: the least sum of losses within the limit.

    Costs above the cheapest are counted in whole steps of what is left, rounded up but for
    what floats round: the limit holds. None where not even the cheapest fit.
    """
    room = limit - sum(min(row) for row in costs.values())
    if room < 0:
        return None
    step = room / _RESOLUTION
    best = torch.zeros(_RESOLUTION + 1, dtype=torch.float64)
    picks: list[Tensor] = []
    needs: list[list[int]] = []
    for name, row in losses.items():
        cheapest = min(costs[name])
        need = [_steps(cost - cheapest, step) for cost in costs[name]]
        totals = torch.full((len(row), _RESOLUTION + 1), torch.inf, dtype=torch.float64)
        for i, (loss, steps) in enumerate(zip(row, need, strict=True)):
            if steps <= _RESOLUTION:
                totals[i, steps:] = best[: _RESOLUTION + 1 - steps] + loss
        best, pick = totals.min(dim=0)
        picks.append(pick)
        needs.append(need)
    place, chosen = _RESOLUTION, {}
    for name, pick, need in reversed(list(zip(losses, picks, needs, strict=True))):
        chosen[name] = int(pick[place])
        place -= need[chosen[name]]
    return {name: chosen[name] for name in losses}


def _steps(cost: float, step: float) -> int:
    """Whole steps of a cost, more than there are where it does not fit at all."""
    if step == 0:
        return 0 if cost == 0 else _RESOLUTION + 1
    return math.ceil(cost / step - 1e-6)
