"""Going on where a call before left off: its cases are lines of the results' file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sparse_runtime.benchmarks.gpu.records import append, error_line, read
from sparse_runtime.benchmarks.gpu.surroundings import GpuSurroundings

SAME = ("commit", "device", "library")
"""Of the surroundings: where one differs, a case is measured anew."""

Case = TypeVar("Case")


def left_to_run(
    path: Path,
    kind: str,
    cases: Sequence[Case],
    fields: Callable[[Case], dict[str, Any]],
    around: GpuSurroundings,
    *,
    again: bool,
) -> list[Case]:
    """The cases that the file lacks for this commit, device and library; prints how many it has.

    A case that was skipped, wholly or in part, is run again.

    Args:
        path: of the results; it need not exist.
        kind: of the lines.
        cases: to run, in order.
        fields: what names a case in its line.
        around: this run's.
        again: whether all are run whatever the file holds.
    """
    if again or not path.exists():
        return list(cases)
    here = [getattr(around, name) for name in SAME]
    held = [
        line
        for line in read(path, kind)
        if not line.get("skipped") and [line["environment"].get(name) for name in SAME] == here
    ]

    def is_held(case: Case) -> bool:
        wanted = fields(case).items()
        return any(all(line.get(name) == value for name, value in wanted) for line in held)

    left = [case for case in cases if not is_held(case)]
    if known := len(cases) - len(left):
        print(f"{known} of {len(cases)} cases are in {path} already (--again runs them)")
    return left


@contextmanager
def end_is_kept(
    path: Path, kind: str, fields: dict[str, Any], around: GpuSurroundings
) -> Iterator[None]:
    """Keeps the error of a case that ends the program, as a fault on the GPU does.

    The next call goes on behind it. One that is interrupted for its time is run again.
    """
    try:
        yield
    except Exception as error:
        line = {**fields, "contenders": {}, "error": error_line(error)}
        append(path, kind, line, around)
        raise
