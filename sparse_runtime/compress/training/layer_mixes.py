"""A format for every layer by itself under a target, found as one-shot pruning does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from tqdm import tqdm

from ..oneshot.allocation import Allocation, CostTable, Target, affordable, allocate
from ..oneshot.plan_state import PlanState
from ..oneshot.plans import NOWHERE, SearchPlan, compared
from ..oneshot.sensitivity import SensitivityTable, sensitivity, units_of
from ..targets import encoder_linears
from .one_shot_scores import Found, OneShot, Scored, Scores, best_first, hidden

# Budgets tried for each mix that is wanted, and how far below the target the last of them lies, as
# a share of what is left between the cheapest mix and the target.
_TRIED, _FURTHEST = 4, 0.2


def mix_costs(model: nn.Module, plan: SearchPlan) -> CostTable:
    """What every choice costs; for a latency target this measures.

    Raises:
        ValueError: nothing meets the target.
    """
    assert plan.target is not None
    units = units_of(model, fused=plan.target.kind == "latency")
    costs = plan.costs(model, units, plan.target)
    affordable(costs, plan.target, units, plan.candidates)
    return costs


def search_layers(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    evaluation: Sequence[dict[str, Tensor]],
    evaluate: Callable[[], float],
    plan: SearchPlan,
    costs: CostTable,
    *,
    top: int,
    scores: Scores | None = None,
    state: PlanState = NOWHERE,
) -> Found:
    """Choose a format for every layer: there are too many candidates to score.

    The change of the outputs when one layer alone takes a format is measured, the least sum of
    these under the target is found by a knapsack, for this target and slightly smaller ones, and
    each mix that comes out is scored as a whole. The target always holds; that errors add up is an
    assumption, which the scores test.

    Args:
        model: in eval mode; as it was when this returns.
        batches: inputs to solve layers for, with "attention_mask".
        evaluation: inputs to compare outputs on; about four of these batches are.
        evaluate: score of the model as it stands, higher is better.
        plan: its target, formats and measurement of a latency.
        costs: of :func:`mix_costs`.
        top: how many mixes are wanted; some more are scored.
        scores: those that are known.
        state: keeps the changes of single layers as they come.
    """
    assert plan.target is not None
    units = units_of(model, fused=plan.target.kind == "latency")
    table = sensitivity(
        model,
        batches,
        plan.candidates,
        units=units,
        evaluation=compared(evaluation),
        known=state.rows(),
        keep=state.add,
        progress=plan.progress,
    )
    mixes = {tuple(one.formats.items()): one for one in _mixes(table, costs, plan.target, top)}
    one_shot = OneShot(encoder_linears(model), evaluate, scores)
    scored = [
        Scored(one.by_layer(), one.cost, one_shot.score(one.by_layer()))
        for one in tqdm(mixes.values(), desc="mixes", disable=hidden(plan.progress))
    ]
    return Found(len(plan.candidates) ** len(units), None, best_first(scored))


def _mixes(
    table: SensitivityTable, costs: CostTable, target: Target, top: int
) -> Iterator[Allocation]:
    budget = affordable(costs, target, table.units, table.formats)
    least = costs.fixed + sum(min(row[f] for f in table.formats) for row in costs.units.values())
    for step in range(_TRIED * top):
        share = _FURTHEST * step / (_TRIED * top)
        yield allocate(table, costs, Target(target.kind, budget - share * (budget - least), False))
