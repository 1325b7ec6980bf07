"""The folder beside the result in which an unfinished training keeps what it needs to go on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..oneshot.plan_state import ROWS

_PLAN = "plan.json"
_RESULT = "stage.json"
_PAPER = "paper.json"
SCORES, FOUND = "scores.jsonl", "found.json"
"""Of a search: scores as they come, and what was found in the end."""
# The trainer writes this file of a checkpoint last.
_WHOLE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Workspace:
    """``<out_dir>.training``: checkpoints of the running stage, models of those that are done.

    A run goes on under the same plan, but for its stages: those before the first that differs are
    kept, and what there is of the others is removed.

    Args:
        out_dir: of the result.
        plan: what the run is (models, seed, data); under "stages", the list of its stages.
        resume: go on with what is there.

    Attributes:
        again: names of the stages that were begun under another recipe and begin again.

    Raises:
        ValueError: an unfinished training is there and ``resume`` is False, or its plan differs; or
            there is none and ``resume`` is True.
    """

    def __init__(self, out_dir: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = _folder(out_dir)
        self.again: tuple[str, ...] = ()
        file = self.folder / _PLAN
        text = json.dumps(plan, indent=2, sort_keys=True)
        if file.is_file():
            if not resume:
                raise ValueError(
                    f"{self.folder}: holds an unfinished training; go on with resume=True "
                    "(--resume), or remove the folder"
                )
            old, new = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
            before, after = old.pop("stages", []), new.pop("stages", [])
            differing = _differing(old, new)
            if differing:
                raise ValueError(
                    f"{self.folder}: was begun with other {', '.join(differing)}; go on with the "
                    "same, or remove the folder"
                )
            if before != after:
                self._begin_again(before, after)
                write_text(file, text)
            return
        if resume:
            raise ValueError(
                f"{self.folder}: holds no unfinished training to go on with; check the directory, "
                "or leave resume=True (--resume) out to begin one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(file, text)

    def _begin_again(
        self, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
    ) -> None:
        """Remove what there is of stages from the first on that differs."""
        same = sum(1 for _ in takewhile(_alike, zip(before, after, strict=False)))
        folders = [self.folder / stage["name"] for stage in before[same:]]
        begun = [folder for folder in folders if folder.is_dir()]
        # The last first: whatever is left by a cut rests on stages that are there.
        for folder in reversed(begun):
            shutil.rmtree(folder)
        self.again = tuple(folder.name for folder in begun)

    def model(self, stage: str) -> Path:
        """Where the model of a stage is, or will be."""
        return self.folder / stage / "model"

    def result(self, stage: str) -> dict[str, Any] | None:
        """What was recorded of a stage that is done; None where it is not."""
        return self._read(stage, _RESULT)

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Record that a stage is done, its model written; its checkpoints go."""
        write_text(self.folder / stage / _RESULT, json.dumps(result))
        shutil.rmtree(self.checkpoints(stage), ignore_errors=True)

    def paper(self, stage: str) -> Path:
        """Where the same model in its paper's own files is, or will be."""
        return self.folder / stage / "paper"

    def paper_record(self, stage: str) -> dict[str, Any] | None:
        """What was recorded of the paper's files; None where none were asked for."""
        return self._read(stage, _PAPER)

    def record_paper(self, stage: str, record: Mapping[str, Any]) -> None:
        """Record how the paper's files are opened, or why there are none."""
        write_text(self.folder / stage / _PAPER, json.dumps(record))

    def discard_models(self, stage: str) -> None:
        """Remove what a run left that was cut off between writing models and :meth:`finish`."""
        for folder in (self.model(stage), self.paper(stage)):
            if folder.exists():
                shutil.rmtree(folder)
        (self.folder / stage / _PAPER).unlink(missing_ok=True)

    def checkpoints(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.folder / stage / "checkpoints"

    def last_checkpoint(self, stage: str) -> Path | None:
        """The newest whole checkpoint of a stage."""
        folder = self.checkpoints(stage)
        if not folder.is_dir():
            return None
        steps = {
            int(match[1]): path
            for path in folder.iterdir()
            # The trainer writes this file last.
            if (match := _CHECKPOINT.fullmatch(path.name))
            and (path / "trainer_state.json").exists()
        }
        return steps[max(steps)] if steps else None

    def discard_if_empty(self) -> None:
        """Remove the folder where nothing was kept that a run could go on from."""
        kept = (_RESULT, _WHOLE, SCORES, ROWS, FOUND)
        if not any(path.name in kept for path in self.folder.rglob("*.json*")):
            self.remove()

    def remove(self) -> None:
        """The training is done and its result written."""
        shutil.rmtree(self.folder)

    def _read(self, stage: str, name: str) -> dict[str, Any] | None:
        file = self.folder / stage / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def is_unfinished(out_dir: Path) -> bool:
    """Whether a training into this directory was begun and not ended."""
    return (_folder(out_dir) / _PLAN).is_file()


def _folder(out_dir: Path) -> Path:
    return out_dir.with_name(f"{out_dir.name}.training")


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def _alike(pair: tuple[Any, Any]) -> bool:
    return bool(pair[0] == pair[1])


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
