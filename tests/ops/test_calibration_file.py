"""The file of measured costs: kept in the user's cache, read back, measured anew."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparse_runtime.ops import calibration
from sparse_runtime.ops.calibration import (
    FEW,
    FLOAT_LAYOUTS,
    INT8_LAYOUTS,
    MANY,
    VERSION,
    Cost,
    Costs,
    cache_file,
    machine_costs,
)
from sparse_runtime.ops.native import extension

RUNNING = [name for name in INT8_LAYOUTS if extension().int8_panels_runs(name)]
MADE_UP: Costs = {
    name: {FEW: Cost(1e-9 * i, 2e-9), MANY: Cost(4e-9 * i, 8e-9)}
    for i, name in enumerate([*RUNNING, *FLOAT_LAYOUTS], start=1)
}


def costs_of_a_new_process() -> Costs:
    """machine_costs() without what this process remembers."""
    return machine_costs.__wrapped__()


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every measurement; what is measured is made up."""
    made: list[None] = []

    def fake() -> Costs:
        made.append(None)
        return MADE_UP

    monkeypatch.setattr(calibration, "measure", fake)
    return made


def test_costs_are_written_once_and_read_back(cache_root: Path, calls: list[None]) -> None:
    assert costs_of_a_new_process() == MADE_UP
    (path,) = (cache_root / "sparse_runtime").iterdir()  # and nothing else is left there
    assert path == cache_file()
    assert json.loads(path.read_text())["version"] == VERSION
    assert costs_of_a_new_process() == MADE_UP
    assert len(calls) == 1


def test_measured_costs_survive_the_file(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = costs_of_a_new_process()
    monkeypatch.setattr(calibration, "measure", lambda: pytest.fail("measured twice"))
    assert costs_of_a_new_process() == first


def test_a_process_reads_the_file_once() -> None:
    assert machine_costs() is machine_costs()


def first_cost(data: dict[str, Any]) -> dict[str, Any]:
    cost: dict[str, Any] = data["costs"]["dense"][MANY]
    return cost


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[: len(text) // 2], id="cut off"),
        pytest.param(lambda text: "[]", id="a list"),
        pytest.param(broken(lambda d: d.update(version=VERSION + 1)), id="a newer version"),
        pytest.param(broken(lambda d: d.pop("version")), id="no version"),
        pytest.param(broken(lambda d: d.pop("costs")), id="no costs"),
        pytest.param(broken(lambda d: d.update(costs={})), id="no layouts"),
        pytest.param(broken(lambda d: d.update(costs=list(d["costs"]))), id="a list of layouts"),
        pytest.param(broken(lambda d: d["costs"].pop("dense")), id="a layout missing"),
        pytest.param(broken(lambda d: d["costs"].update(other={})), id="an unknown layout"),
        pytest.param(broken(lambda d: d["costs"].update(dense=[1, 2])), id="a list of costs"),
        pytest.param(broken(lambda d: d["costs"]["dense"].pop(FEW)), id="a regime missing"),
        pytest.param(broken(lambda d: first_cost(d).pop("per_row")), id="a number missing"),
        pytest.param(broken(lambda d: first_cost(d).update(per_row="1")), id="a string"),
        pytest.param(broken(lambda d: first_cost(d).update(per_unit=math.nan)), id="NaN"),
        pytest.param(broken(lambda d: first_cost(d).update(per_unit=-1e-9)), id="negative"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_measured_anew(
    spoil: Callable[[str], str], cache_root: Path, calls: list[None]
) -> None:
    costs_of_a_new_process()
    good = cache_file().read_text()
    cache_file().write_text(spoil(good))
    assert costs_of_a_new_process() == MADE_UP
    assert len(calls) == 2
    assert cache_file().read_text() == good


def test_bytes_that_are_no_text_are_measured_anew(cache_root: Path, calls: list[None]) -> None:
    costs_of_a_new_process()
    cache_file().write_bytes(b"\xff\xfe\x00")
    assert costs_of_a_new_process() == MADE_UP
    assert len(calls) == 2


def other_processor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(calibration, "_cpu_name", lambda: "another processor")


def other_architecture(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(calibration.platform, "machine", lambda: "another architecture")


def other_instruction_set(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("SPARSE_RUNTIME_ISA", "generic")


def other_build(patch: pytest.MonkeyPatch) -> None:
    real = extension()
    patch.setattr(
        calibration,
        "extension",
        lambda: SimpleNamespace(
            isas=real.isas,
            build_info=lambda: {**real.build_info(), "compiler": "another compiler"},
            int8_panels_runs=real.int8_panels_runs,
        ),
    )


def other_features(patch: pytest.MonkeyPatch) -> None:
    # The same build on a machine that runs portable code only.
    real = extension()
    patch.setattr(
        calibration,
        "extension",
        lambda: SimpleNamespace(
            isas=lambda: [{**row, "available": row["name"] == "generic"} for row in real.isas()],
            build_info=real.build_info,
            int8_panels_runs=real.int8_panels_runs,
        ),
    )


@pytest.mark.parametrize(
    "change",
    [other_processor, other_architecture, other_instruction_set, other_build, other_features],
)
def test_another_machine_has_a_file_of_its_own(
    change: Callable[[pytest.MonkeyPatch], None],
    cache_root: Path,
    calls: list[None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSE_RUNTIME_ISA", "auto")
    costs_of_a_new_process()
    here = cache_file()
    with monkeypatch.context() as patch:
        change(patch)
        assert cache_file() != here
        costs_of_a_new_process()
        assert len(calls) == 2
        assert cache_file().exists() and here.exists()
    costs_of_a_new_process()
    assert len(calls) == 2  # coming back, the first file still counts


def test_the_cache_lies_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # as if it were not set
    assert cache_file().parent == tmp_path / ".cache" / "sparse_runtime"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_file().parent == tmp_path / "elsewhere" / "sparse_runtime"


def test_a_folder_that_cannot_be_made_does_not_fail(
    tmp_path: Path,
    calls: list[None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A file where the folder should be: unlike permissions, it stops the superuser too.
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with caplog.at_level(logging.INFO):
        assert costs_of_a_new_process() == MADE_UP
        assert costs_of_a_new_process() == MADE_UP
    assert len(calls) == 2
    assert "cost model not kept" in caplog.text
    assert blocked.read_text() == "mine"


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(
    cache_root: Path, calls: list[None]
) -> None:
    cache_file().mkdir(parents=True)
    assert costs_of_a_new_process() == MADE_UP
    assert list(cache_file().parent.iterdir()) == [cache_file()]


def test_a_user_without_a_home_does_not_fail(
    calls: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(calibration.Path, "home", unknown)
    with pytest.raises(OSError, match="set XDG_CACHE_HOME"):
        cache_file()
    assert costs_of_a_new_process() == MADE_UP
    assert len(calls) == 1
