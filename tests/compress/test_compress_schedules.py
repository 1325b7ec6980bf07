"""Schedules against their closed forms."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.compress.schedules import (
    CubicSparsity,
    linear_schedule,
    rewinding_schedule,
    sawtooth,
)


def rates(make, steps: int, **arguments: object) -> list[float]:
    """Learning rates of a run whose highest is 2."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer, **arguments)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cubic_sparsity_follows_its_formula() -> None:
    schedule = CubicSparsity(initial=0.2, final=0.9, begin=10, end=50, stop=80, every=10)
    assert schedule.value(9) == 0.0
    assert schedule.value(10) == pytest.approx(0.2)
    # Halfway: 0.9 - 0.7 / 8.
    assert schedule.value(30) == pytest.approx(0.9 - 0.7 / 8)
    assert schedule.value(50) == schedule.value(70) == schedule.value(1000) == 0.9
    values = [schedule.value(step) for step in range(100)]
    assert values == sorted(values)


def test_the_mask_moves_until_stop_and_at_stop_even_off_the_beat() -> None:
    schedule = CubicSparsity(initial=0.0, final=0.9, begin=4, end=20, stop=26, every=5)
    assert [step for step in range(40) if schedule.is_update(step)] == [4, 9, 14, 19, 24, 26]
    assert schedule.value(26) == 0.9
    # Without stop the last update is at the end.
    short = CubicSparsity(initial=0.0, final=0.5, begin=0, end=7, every=3)
    assert [step for step in range(20) if short.is_update(step)] == [0, 3, 6, 7]


def test_a_schedule_of_one_step_jumps() -> None:
    schedule = CubicSparsity(initial=0.0, final=0.5, begin=3, end=3)
    assert [schedule.value(step) for step in (2, 3)] == [0.0, 0.5]


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": 0.6, "final": 0.5, "begin": 0, "end": 5},
        {"initial": 0.0, "final": 1.0, "begin": 0, "end": 5},
        {"initial": 0.0, "final": 0.5, "begin": 6, "end": 5},
        {"initial": 0.0, "final": 0.5, "begin": 0, "end": 5, "stop": 4},
        {"initial": 0.0, "final": 0.5, "begin": 0, "end": 5, "every": 0},
    ],
)
def test_impossible_schedules_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^schedule: expected"):
        CubicSparsity(**arguments)


def test_linear_rates_warm_up_and_reach_zero_behind_the_last_step() -> None:
    # 2 steps up, 4 down.
    assert rates(linear_schedule, 8, total=6, warmup=2) == pytest.approx(
        [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    )


def test_rewinding_goes_back_to_the_start_at_each_event() -> None:
    seen = rates(rewinding_schedule, 14, total=14, prune_begin=2, prune_end=8, every=3, warmup=0)
    # 14 steps, 6 of them of pruning: the decay spans 8. Events at 2 and 5 set the clock to 2.
    plain = [2 * (8 - clock) / 8 for clock in range(8)]
    assert seen == pytest.approx(plain[:2] + plain[2:5] + plain[2:5] + plain[2:])


def test_rewinding_warms_up_once() -> None:
    seen = rates(rewinding_schedule, 20, total=20, prune_begin=0, prune_end=8, every=2, warmup=4)
    # The decay spans 12 steps, the 4 of the warm-up among them; each event is at its start.
    high, next_to_high = 2 * 12 / 8, 2 * 11 / 8
    assert seen[:4] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert seen[4:8] == pytest.approx([high, next_to_high] * 2)
    assert seen[8:] == pytest.approx([2 * (12 - clock) / 8 for clock in range(12)])


def test_sawtooth_falls_to_low_in_each_tooth() -> None:
    seen = rates(sawtooth, 12, total=12, every=4, low=0.5, end=8)
    tooth = [2.0, 1.75, 1.5, 1.25]
    assert seen == pytest.approx(tooth * 3)
    # The last tooth lasts until the total: from 4 on, 8 steps.
    long = rates(sawtooth, 12, total=12, every=4, low=0.5, end=4)
    assert long[4:] == pytest.approx([2 - step / 8 for step in range(8)])


def test_steps_beyond_the_total_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup 7: expected a step from 0 to total=6"):
        linear_schedule(optimizer, total=6, warmup=7)
    with pytest.raises(ValueError, match="every 0"):
        sawtooth(optimizer, total=6, every=0)
