"""The timer, on a clock that only the timed calls move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparse_runtime.testing import Timing, measure_interleaved


class FakeClock:
    """Seconds that pass only when a call says so, and the order of all calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, *durations: float) -> Callable[[], None]:
        """A call that lasts each of ``durations`` in turn, then the last one for ever."""
        left = list(durations)

        def call() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_percentiles_are_linear_between_samples() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 5.0))
    assert timing.median == 3.0
    assert timing.percentile(0) == 1.0
    assert timing.percentile(20) == pytest.approx(1.8)
    assert timing.percentile(100) == 5.0
    assert Timing((7.0,)).percentile(80) == 7.0


def test_the_order_is_reversed_from_round_to_round() -> None:
    clock = FakeClock()
    tasks = {name: clock.task(name, 1.0) for name in "abc"}
    measure_interleaved(tasks, warmup=1, min_rounds=2, min_seconds=0, clock=clock)
    # One warm-up each; then per turn one call that is not counted and one that is.
    assert "".join(clock.order) == "abc" + "aabbcc" + "ccbbaa"


def test_warm_up_and_the_first_call_of_a_turn_do_not_count() -> None:
    clock = FakeClock()
    slow_at_first = clock.task("a", 9.0, 8.0, 7.0, 1.0, 1.0)
    timings = measure_interleaved(
        {"a": slow_at_first}, warmup=2, min_rounds=2, min_seconds=0, clock=clock
    )
    assert timings["a"].samples == (1.0, 1.0)


def test_short_calls_fill_their_turn() -> None:
    clock = FakeClock()
    tasks = {"short": clock.task("short", 0.25), "long": clock.task("long", 4.0)}
    timings = measure_interleaved(
        tasks, warmup=1, min_rounds=3, min_seconds=0, turn_seconds=1.0, clock=clock
    )
    assert len(timings["short"].samples) == 3 * 4
    assert len(timings["long"].samples) == 3


def test_rounds_go_on_until_the_time_is_reached() -> None:
    clock = FakeClock()
    timings = measure_interleaved(
        {"a": clock.task("a", 0.5)}, min_rounds=1, min_seconds=10, turn_seconds=0.1, clock=clock
    )
    assert len(timings["a"].samples) == 20


def test_a_slow_call_does_not_wait_for_a_fast_one() -> None:
    clock = FakeClock()
    tasks = {"fast": clock.task("fast", 0.001), "slow": clock.task("slow", 5.0)}
    timings = measure_interleaved(
        tasks, min_rounds=4, min_seconds=1, turn_seconds=0.01, clock=clock
    )
    assert len(timings["slow"].samples) == 4
    assert len(timings["fast"].samples) == 40


def test_samples_are_sorted_and_apart() -> None:
    clock = FakeClock()
    tasks = {"a": clock.task("a", 1.0, 1.0, 3.0, 1.0, 2.0), "b": clock.task("b", 5.0)}
    timings = measure_interleaved(tasks, warmup=1, min_rounds=2, min_seconds=0, clock=clock)
    assert timings["a"].samples == (2.0, 3.0)
    assert timings["b"].samples == (5.0, 5.0)


def test_the_real_clock_tells_a_long_call_from_a_short_one() -> None:
    timings = measure_interleaved(
        {"short": lambda: sum(range(10)), "long": lambda: sum(range(20_000))},
        min_rounds=3,
        min_seconds=0.005,
    )
    assert timings["short"].median < timings["long"].median


@pytest.mark.parametrize(("names", "warmup", "rounds"), [("", 1, 1), ("a", 0, 1), ("a", 1, 0)])
def test_nothing_to_time_is_refused(names: str, warmup: int, rounds: int) -> None:
    with pytest.raises(ValueError, match="expected callables"):
        measure_interleaved(
            {name: lambda: None for name in names}, warmup=warmup, min_rounds=rounds
        )
