"""JSON lines of what was measured on a GPU: one file a device, one line a case, written at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_runtime.benchmarks.gpu.surroundings import GpuSurroundings, file_name
from sparse_runtime.benchmarks.records import SCHEMA

FOLDER = Path(__file__).resolve().parent.parent / "results"


def results_path(folder: Path | None, device: str) -> Path:
    """The file of a device; makes the folder."""
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder / file_name(device)


def append(path: Path, kind: str, fields: dict[str, Any], around: GpuSurroundings) -> None:
    """Write one line.

    Raises:
        ValueError: a number that JSON has no form for.
    """
    line = {"schema": SCHEMA, "kind": kind, **fields, "environment": asdict(around)}
    # All at once: a run that is stopped for its time leaves no half of a line.
    with path.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(line, allow_nan=False)}\n".encode())


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    """All lines of a kind, in the order they were written."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


class Skipped(Exception):
    """A contender takes no part; with the reason."""


def without_times(error: Exception) -> dict[str, str]:
    """What is kept of a contender that did not run: why it was skipped, or its error."""
    if isinstance(error, (Skipped, ModuleNotFoundError)):
        return {"skipped": str(error)}
    return {"error": error_line(error)}


def error_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
