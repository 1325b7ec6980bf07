"""What layouts cost on this machine: every layout, quickly, and the line behind the times."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sparse_runtime.ops import calibration
from sparse_runtime.ops.calibration import (
    FEW,
    FLOAT_LAYOUTS,
    INT8_LAYOUTS,
    MANY,
    measure,
)
from sparse_runtime.ops.native import extension

RUNNING = [name for name in INT8_LAYOUTS if extension().int8_panels_runs(name)]


def test_measuring_is_quick_and_covers_every_layout_that_runs_here() -> None:
    begin = time.perf_counter()
    costs = measure()
    assert time.perf_counter() - begin < 10
    assert set(costs) == {*RUNNING, *FLOAT_LAYOUTS}
    assert "dense" in costs
    for layout, regimes in costs.items():
        assert list(regimes) == [FEW, MANY], layout
        for cost in regimes.values():
            assert cost.per_unit >= 0 and cost.per_row >= 0
            assert 0 < cost.seconds(1000, 256) < 1


def test_measuring_finds_the_line_behind_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine whose kernels take exactly per_unit * units + per_row * rows on each panel.
    per_unit, per_row = 3e-9, 5e-9
    seen: list[tuple[str, int, int]] = []

    def pack(address: int, rows: int, columns: int, layout: str) -> tuple[str, int, int]:
        units = extension().int8_panels_count(address, rows, columns)[layout]
        return layout, units, rows

    def seconds(weight: tuple[str, int, int], panels: int, vectors: int, repeats: int) -> float:
        layout, units, rows = weight
        seen.append((layout, panels, vectors))
        return panels * vectors * (per_unit * units + per_row * rows)

    exact = SimpleNamespace(
        int8_panels_runs=lambda layout: True,
        int8_panels_count=extension().int8_panels_count,
        int8_panels_pack=pack,
        int8_panels_seconds=seconds,
        float_panels_count=extension().float_panels_count,
        float_panels_pack=extension().float_panels_pack,
        float_panels_seconds=lambda weight, panels, vectors, repeats: 1.0,
    )
    monkeypatch.setattr(calibration, "extension", lambda: exact)
    costs = measure()
    # One vector of 16 tokens, or the four of a panel; tiles take four panels at once.
    assert {(p, v) for name, p, v in seen if name == "band1_gathered"} == {(1, 1), (1, 4)}
    assert {(p, v) for name, p, v in seen if name == "tiles"} == {(1, 1), (4, 4)}
    for layout in INT8_LAYOUTS:
        for regime, vectors in ((FEW, 1), (MANY, 4)):
            cost = costs[layout][regime]
            if layout in ("dense", "tiles"):  # as many units at either density: one point
                assert cost.per_row == 0
                units = {"dense": 64 * 192, "tiles": 16 * 12}[layout]
                expected = vectors * (per_unit * units + per_row * 256)
                assert cost.seconds(units, 256) == pytest.approx(expected)
            elif layout != "tile_bits":  # counted as tiles
                assert cost.per_unit == pytest.approx(vectors * per_unit)
                assert cost.per_row == pytest.approx(vectors * per_row)


def test_noise_gives_no_negative_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sparser weight took longer: the slope is cut at 0, and the time is the rows'.
    times = iter([1e-6, 2e-6] * 100)
    noisy = SimpleNamespace(
        int8_panels_runs=lambda layout: layout == "band1_grouped",
        int8_panels_count=extension().int8_panels_count,
        int8_panels_pack=extension().int8_panels_pack,
        int8_panels_seconds=lambda *arguments: next(times),
        float_panels_count=extension().float_panels_count,
        float_panels_pack=extension().float_panels_pack,
        float_panels_seconds=lambda *arguments: next(times),
    )
    monkeypatch.setattr(calibration, "extension", lambda: noisy)
    cost = measure()["band1_grouped"][MANY]
    assert cost.per_unit == 0
    assert cost.seconds(10**6, 256) == pytest.approx(2e-6)
