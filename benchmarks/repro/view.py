"""The table a person chooses from, as Markdown, and the plot beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_runtime.benchmarks.figures import new_figure, save
from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS
from sparse_runtime.benchmarks.repro.experiments import DENSE, Experiment
from sparse_runtime.benchmarks.repro.records import Latency, Run, read
from sparse_runtime.benchmarks.repro.tasks import METRICS
from sparse_runtime.benchmarks.repro.timing import PEERS, TRANSFORMERS


@dataclass(frozen=True)
class Row:
    """One experiment on one task, all seeds.

    Attributes:
        experiment: of the table.
        runs: one a seed.
        latency: by batch and length: milliseconds.
        partner: the runs of the experiment it is compared with, of the same seeds.
    """

    experiment: Experiment
    runs: tuple[Run, ...]
    latency: dict[tuple[int, int], float]
    partner: tuple[Run, ...] = ()

    @property
    def metric(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(run.packed for run in self.runs)

    @property
    def share(self) -> float:
        """Of dense FP32, mean over the seeds."""
        return statistics.mean(run.share for run in self.runs)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the metric over the seeds; None of one."""
        if len(self.runs) < 2:
            return None
        return statistics.stdev(run.packed for run in self.runs)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        goal = self.experiment.goal
        if goal is None:
            return None
        if METRICS[self.runs[0].task] == "spearman":
            return statistics.mean(run.dense - run.packed for run in self.runs) <= goal
        return self.share >= goal

    @property
    def gains(self) -> list[float]:
        """Differences to the partner, one of each seed that both have."""
        theirs = {run.seed: run.packed for run in self.partner}
        return [run.packed - theirs[run.seed] for run in self.runs if run.seed in theirs]


def rows(results: Path, scale: str, task: str) -> list[Row]:
    """What the results hold for one task, in the order of the table."""
    runs, latencies = read(results)
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.scale == scale and run.task == task:
            found.setdefault(run.experiment, []).append(run)
    order = [experiment for experiment in EXPERIMENTS if task in experiment.tasks]
    return [
        Row(
            experiment,
            tuple(found[experiment.name]),
            _latency(latencies, experiment.name, task),
            tuple(found.get(experiment.against or "", ())),
        )
        for experiment in order
        if experiment.name in found
    ]


LEFT_OUT_OF_TIMED = ("goal", "against its partner", "zeros")


def table(results: Path, scale: str, task: str, *, timed: bool = False) -> str:
    """Markdown: one row an experiment, those of the peers' times below.

    Args:
        results: file of JSON lines.
        scale: of the runs.
        task: theirs.
        timed: rows that have latencies alone, and columns that a person chooses by.
    """
    found = [row for row in rows(results, scale, task) if row.latency or not timed]
    if not found:
        return f"no runs of {task} at scale {scale} in {results.name}"
    batches = sorted({batch for row in found for batch in row.latency})
    metric = METRICS[task]
    columns = ["experiment", "seeds", metric, "of dense FP32", "goal", "against its partner"]
    columns += ["zeros", "encoder MB", "file MB", *(f"ms, {b} x {n}" for b, n in batches)]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    lines += [_cells(row, batches) for row in found]
    lines += _peer_cells(results, scale, task, batches, len(columns))
    kept = [i for i, name in enumerate(columns) if not (timed and name in LEFT_OUT_OF_TIMED)]
    return "\n".join(f"| {' | '.join(line[i] for i in kept)} |" for line in lines)


def _cells(row: Row, batches: Sequence[tuple[int, int]]) -> list[str]:
    last = row.runs[-1]
    spread = "" if row.spread is None else f" ± {row.spread:.4f}"
    gain = ""
    if row.gains:
        gain = f"{100 * statistics.mean(row.gains):+.2f}"
        if len(row.gains) > 1:
            gain += f" ± {100 * statistics.stdev(row.gains):.2f}"
        gain += f" over {row.experiment.against}"
    return [
        row.experiment.name,
        str(len(row.runs)),
        f"{row.metric:.4f}{spread}",
        f"{row.share:.2%}",
        _goal(row),
        gain,
        f"{last.sparsity:.0%}",
        f"{last.linears_bytes / 1e6:.2f}",
        f"{last.weights_bytes / 1e6:.1f}",
        *(f"{row.latency[b]:.2f}" if b in row.latency else "" for b in batches),
    ]


def _goal(row: Row) -> str:
    goal = row.experiment.goal
    if goal is None:
        return ""
    word = "reached" if row.reached else "**missed**"
    if METRICS[row.runs[0].task] == "spearman":
        return f"-{goal:g}, {word}"
    return f"{goal:.1%}, {word}"


def _peer_cells(
    results: Path, scale: str, task: str, batches: Sequence[tuple[int, int]], width: int
) -> list[list[str]]:
    lines = []
    for peer in peers(results, scale, task):
        cells = [""] * (width - len(batches))
        cells[0], cells[3] = peer.name, f"{peer.share:.2%}"
        if peer.weights_bytes:
            cells[8] = f"{peer.weights_bytes / 1e6:.1f}"
        times = [f"{peer.latency[b]:.2f}" if b in peer.latency else "" for b in batches]
        lines.append([*cells, *times])
    return lines


@dataclass(frozen=True)
class Peer:
    """Another runtime with a dense model: share of dense FP32, milliseconds, bytes on disk."""

    name: str
    share: float
    latency: dict[tuple[int, int], float]
    weights_bytes: int


def peers(results: Path, scale: str, task: str) -> list[Peer]:
    """Those that have been timed and whose accuracy is known."""
    runs, latencies = read(results)
    found = []
    for name in PEERS:
        own = [r for r in runs if (r.experiment, r.scale, r.task) == (name, scale, task)]
        # transformers in FP32 is what every share is of.
        shares = [run.share for run in own] or ([1.0] if name == TRANSFORMERS else [])
        known = _latency(latencies, name, task)
        if shares and known:
            size = own[-1].weights_bytes if own else 0
            found.append(Peer(name, statistics.mean(shares), known, size))
    return found


def _latency(latencies: Iterable[Latency], name: str, task: str) -> dict[tuple[int, int], float]:
    return {
        (one.batch, one.length): one.p50_ms
        for one in latencies
        if one.experiment == name and one.task == task
    }


def plot(results: Path, scale: str, path: Path, tasks: Sequence[str] = ("banking77", "mr")) -> None:
    """Accuracy kept against milliseconds, area of a point = bytes on disk; one panel a task.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing has both an accuracy and a latency.
    """
    panels = {task: rows(results, scale, task) for task in tasks}
    panels = {task: [row for row in found if row.latency] for task, found in panels.items()}
    panels = {task: found for task, found in panels.items() if found}
    if not panels:
        raise ValueError(f"{results.name}: no run has a latency: run bench_repro.py latency")
    figure = new_figure(6.5 * len(panels), 5.5)
    for axes, (task, found) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        batch = min(batch for row in found for batch in row.latency)
        groups = dict.fromkeys(row.experiment.group for row in found)
        for group in groups:
            own = [row for row in found if row.experiment.group == group and batch in row.latency]
            axes.scatter(
                [row.latency[batch] for row in own],
                [100 * row.share for row in own],
                s=[6 * row.runs[-1].linears_bytes / 1e6 + 10 for row in own],
                alpha=0.6,
                label=group,
            )
        for peer, mark in zip(peers(results, scale, task), "xs", strict=False):
            if batch in peer.latency:
                place = peer.latency[batch], 100 * peer.share
                axes.scatter(*place, marker=mark, color="black", s=25, label=peer.name)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        own = [row for row in found if batch in row.latency]
        _label(axes, {_named(row): (row.latency[batch], 100 * row.share) for row in own})
        axes.set_title(task)
        axes.set_xlabel(f"milliseconds, {batch[0]} text of {batch[1]} tokens")
        axes.set_ylabel(f"{METRICS[task]}, % of {DENSE}")
        axes.legend(fontsize=6, title="area: bytes of the encoder", title_fontsize=6)
    save(figure, path)


def _named(row: Row) -> str:
    return f"{row.experiment.name}, {row.runs[-1].weights_bytes / 1e6:.0f} MB on disk"


def _label(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column right of the faster half, from the top down, so that none hides another."""
    bottom, top = axes.get_ylim()
    column = 1.15 * statistics.median(x for x, _ in points.values())
    height = top
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        height = min(y, height - 0.018 * (top - bottom))
        place = (max(column, 1.05 * x), height)
        line = {"arrowstyle": "-", "linewidth": 0.3, "relpos": (0, 0.5)}
        axes.annotate(name, (x, y), place, fontsize=5, va="center", arrowprops=line)
