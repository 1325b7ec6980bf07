"""What a search has found so far, on disk, so that a run that was stopped chooses no other way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .allocation import Allocation
from .layer_format import LayerFormat
from .sensitivity import Sensitivity
from .state import LayerStates

ROWS = "sensitivity.jsonl"
_ALLOCATION = "allocation.json"


class PlanState:
    """The rows of a sweep as they come, and the formats chosen by them.

    Args:
        directory: one that holds this run alone; None keeps nothing.
        begin: called before something is written.
    """

    def __init__(self, directory: Path | None, begin: Callable[[], None] = lambda: None) -> None:
        self._directory, self._begin = directory, begin

    @classmethod
    def of(cls, states: LayerStates | None) -> PlanState:
        """In a run's directory, which begins with the first thing kept."""
        return cls(None) if states is None else cls(states.directory, states.begin)

    def rows(self) -> list[Sensitivity]:
        """What the sweep has measured."""
        if self._directory is None or not (self._directory / ROWS).is_file():
            return []
        path = self._directory / ROWS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) != len(lines):  # stopped while it was written
            path.write_text("".join(whole), encoding="utf-8")
        found = map(json.loads, whole)
        return [Sensitivity(u, LayerFormat.parse(choice), error) for u, choice, error in found]

    def add(self, row: Sensitivity) -> None:
        """Keep a row."""
        if self._directory is None:
            return
        self._begin()
        with (self._directory / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps([row.unit, str(row.format), row.error]) + "\n")

    def allocation(self) -> Allocation | None:
        """The formats that were chosen, if they were."""
        if self._directory is None or not (self._directory / _ALLOCATION).is_file():
            return None
        text = (self._directory / _ALLOCATION).read_text(encoding="utf-8")
        return Allocation.from_dict(json.loads(text))

    def choose(self, allocation: Allocation) -> None:
        """Keep the formats: what is measured varies, and another run would choose otherwise."""
        if self._directory is None:
            return
        self._begin()
        staging = self._directory / f"{_ALLOCATION}.partial"
        staging.write_text(json.dumps(allocation.to_dict(), indent=2) + "\n", encoding="utf-8")
        staging.replace(self._directory / _ALLOCATION)
