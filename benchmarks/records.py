"""What every measurement carries along, and the files that measurements are kept in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rich.console import Console

from sparse_runtime.testing import Timing

SCHEMA = 1
"""Version of the JSON lines; it changes when a field changes its meaning."""

FILE_WIDTH = 180

PERCENTILES = (20, 50, 80)
VERSIONS_OF = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Environment:
    """Where and when a run was made.

    Attributes:
        device: the processor's model name.
        cores: processors that the process may use.
        features: instruction set extensions that kernels ask for.
        versions: of sparse_runtime, Python and the packages that the figures depend on.
        commit: of the checkout, with "+" behind it where files were changed; None outside of one.
        time: start of the run, UTC, ISO 8601.
        load: processes that wanted to run in the minute before, or None where unknown. Above 1 the
            figures were taken on a busy machine.
    """

    device: str
    cores: int
    features: tuple[str, ...]
    versions: dict[str, str]
    commit: str | None
    time: str
    load: float | None


@dataclass(frozen=True)
class Record:
    """Base of all records: times of single calls and the environment."""

    kind: ClassVar[str]

    p20_us: float
    p50_us: float
    p80_us: float
    calls: int
    threads: int
    environment: Environment

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with the kind and the schema's version."""
        return {"schema": SCHEMA, "kind": self.kind, **asdict(self)}


RecordType = TypeVar("RecordType", bound=Record)


def percentiles_us(timing: Timing) -> dict[str, Any]:
    """The fields ``p20_us``, ``p50_us`` and ``p80_us`` of a record, and ``calls``."""
    times = {f"p{p}_us": timing.percentile(p) * 1e6 for p in PERCENTILES}
    return {**times, "calls": len(timing.samples)}


def environment() -> Environment:
    """Describe this machine, this installation and this moment."""
    from sparse_runtime import info

    found = info()
    versions = {"sparse_runtime": found.version, "python": found.python.split()[0]}
    versions |= {p.name: p.version for p in found.packages if p.name in VERSIONS_OF and p.version}
    if find_spec("torchao") is not None:  # an optional contender, no package of ours
        versions["torchao"] = version("torchao")
    return Environment(
        device=found.cpu.model,
        cores=found.cpu.usable_cores,
        features=found.cpu.features,
        versions=versions,
        commit=commit_of_checkout(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


@cache
def commit_of_checkout() -> str | None:
    """The commit of this checkout, "+" behind it where files were changed; None outside of one."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository.
    if git("ls-files", "benchmarks/records.py") != "benchmarks/records.py":
        return None
    commit = git("rev-parse", "--short=12", "HEAD")
    # Results that a run adds do not change what it measures.
    changed = git("status", "--porcelain", "-uno", "--", ".", ":(exclude)benchmarks/results")
    return f"{commit}+" if commit and changed else commit


def write_jsonl(records: Iterable[Record], path: Path | str) -> None:
    """Append one line of JSON for each record; makes the folder.

    Raises:
        ValueError: a record holds a number that JSON has no form for; nothing is written.
    """
    lines = [json.dumps(record.to_dict(), allow_nan=False) + "\n" for record in records]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def describe(environment: Environment) -> str:
    """Two lines to print above a table."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    load = "" if environment.load is None else f", load {environment.load:g}"
    if environment.load is not None and environment.load > 1:
        load += " before the start: other work disturbs the figures"
    return (
        f"{environment.device}, {environment.cores} cores{load}\n"
        f"{versions}, commit {environment.commit or 'unknown'}, {environment.time}"
    )


def environment_of(records: Sequence[Record]) -> Environment:
    """The environment that one run's records share.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("no records: nothing was measured")
    return records[0].environment


def publish(
    records: Sequence[RecordType],
    render: Callable[[Sequence[RecordType], Console], None],
    plot: Callable[[Sequence[RecordType], Path], None],
    *,
    output: Path | None,
    plot_to: Path | None,
    json_lines: bool,
) -> None:
    """What both commands do with their records: print, append to a file, plot."""
    if json_lines:
        for record in records:
            print(json.dumps(record.to_dict(), allow_nan=False))
    else:
        terminal = Console()
        # Elsewhere nobody could widen the window, and a table cut to 80 columns says nothing.
        render(records, terminal if terminal.is_terminal else Console(width=FILE_WIDTH))
    if output is not None:
        write_jsonl(records, output)
    if plot_to is not None:
        plot(records, plot_to)
