"""Model records as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparse_runtime.benchmarks.figures import new_figure, save
from sparse_runtime.benchmarks.model_records import YARDSTICK, ModelRecord
from sparse_runtime.benchmarks.records import describe, environment_of


def render(records: Sequence[ModelRecord], console: Console) -> None:
    """Print one row for each contender, one section for each workload.

    Raises:
        ValueError: there are no records.
    """
    console.print(describe(environment_of(records)), highlight=False)
    table = Table(title="Whole encoders", title_justify="left")
    for name in ("model", "weights", "workload", "threads", "contender"):
        table.add_column(name, no_wrap=True)
    for name in ("p20 ms", "p50 ms", "p80 ms", "sequences/s", "tokens/s", "drift", "speedup"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, group in groupby(records, key=_case):
        for index, record in enumerate(group):
            table.add_row(*_row(record, index == 0), style="dim" if record.baseline else "bold")
        table.add_section()
    console.print(table)
    console.print(
        f"speedup: against {YARDSTICK} (eager, SDPA) on the dequantized weights. drift: distance "
        "of the output from its output, relative."
    )


def plot(records: Sequence[ModelRecord], path: Path | str) -> None:
    """Bars of the speedup over transformers, grouped by workload, one panel a thread count.

    Raises:
        ValueError: there are no records.
        ImportError: matplotlib is not installed.
    """
    environment = environment_of(records)
    counts = sorted({record.threads for record in records})
    workloads = list(dict.fromkeys(record.workload for record in records))
    width = max(6.0, 2 + 1.6 * len(workloads))
    figure = new_figure(width, 1.4 + 3.2 * len(counts))
    axes = figure.subplots(len(counts), 1, squeeze=False)[:, 0]
    for axis, threads in zip(axes, counts, strict=True):
        bars: dict[str, dict[str, float]] = {}
        for record in records:
            if record.threads == threads and record.contender != YARDSTICK:
                bars.setdefault(_label(record), {})[record.workload] = record.speedup
        for index, (label, speeds) in enumerate(bars.items()):
            step = 0.8 / len(bars)
            at = [workloads.index(name) - 0.4 + (index + 0.5) * step for name in speeds]
            drawn = axis.bar(at, list(speeds.values()), step, label=label)
            axis.bar_label(drawn, fmt="%.2f", fontsize=7)
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(workloads)), workloads)
        axis.set_ylabel("speedup")
        axis.set_title(f"threads: {threads}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Speedup over {YARDSTICK}\n{environment.device}", fontsize=11)
    save(figure, path)


def _case(record: ModelRecord) -> tuple[object, ...]:
    return (record.model, _weights(record), record.workload, record.threads)


def _weights(record: ModelRecord) -> str:
    at = f"@{record.sparsity:.2g}" if record.structure not in ("dense", "2:4") else ""
    return f"{record.structure}{at} {record.values}"


def _label(record: ModelRecord) -> str:
    name = f"{record.model}, {_weights(record)}"
    return f"{name}: {record.contender}" if record.baseline else name


def _row(record: ModelRecord, first: bool) -> tuple[str, ...]:
    case = (record.model, _weights(record), record.workload, str(record.threads))
    times = (record.p20_us, record.p50_us, record.p80_us)
    return (
        *(case if first else ("",) * len(case)),
        record.contender if record.baseline else f"{record.contender} ({record.backend})",
        *(f"{time / 1e3:,.2f}" for time in times),
        f"{record.sequences_per_s:,.0f}",
        f"{record.tokens_per_s:,.0f}",
        f"{record.drift:.2e}",
        f"{record.speedup:.2f}",
    )
