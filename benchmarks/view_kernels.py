"""Kernel records as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sparse_runtime.benchmarks.figures import new_figure, save
from sparse_runtime.benchmarks.records import describe, environment_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparse_runtime.benchmarks.kernel_records import KernelRecord

COLUMNS = ("p20 µs", "p50 µs", "p80 µs", "GFLOP/s", "GB/s", "% roofline", "bound", "speedup")


def render(records: Sequence[KernelRecord], console: Console) -> None:
    """Print one row for each contender, one section for each case.

    Raises:
        ValueError: there are no records.
    """
    console.print(describe(environment_of(records)), highlight=False)
    for threads, group in groupby(records, key=lambda record: record.threads):
        of_threads = list(group)
        console.print(_ceilings(of_threads[0]), highlight=False)
        table = Table(title=f"Linear layers, threads: {threads}", title_justify="left")
        for name in ("layer", "tokens", "weight", "contender"):
            table.add_column(name, justify="right" if name == "tokens" else "left", no_wrap=True)
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for _, case in groupby(of_threads, key=_case):
            for index, record in enumerate(case):
                table.add_row(*_row(record, first=index == 0), style=_style(record))
            table.add_section()
        console.print(table)
    console.print(
        "speedup: against the fastest dense baseline of the same case. Bold: what `choose` takes. "
        "Dim: baselines."
    )


def plot(records: Sequence[KernelRecord], path: Path | str) -> None:
    """Speedup over the fastest dense baseline by tokens, one panel for each layer.

    Raises:
        ValueError: there are no records.
        ImportError: matplotlib is not installed.
    """
    environment = environment_of(records)
    panels: dict[str, list[KernelRecord]] = {}
    for record in records:
        if not record.baseline:
            key = (
                f"{record.shape} {record.layer} [{record.out_features}, {record.in_features}]\n"
                f"threads: {record.threads}"
            )
            panels.setdefault(key, []).append(record)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(6, 1.5 + 3.6 * columns), 1.2 + 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        _plot_panel(axis, title, panel)
    # A limit that is set stops scaling, so it waits until every panel that shares it is drawn.
    axes[0, 0].set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("speedup")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    figure.suptitle(f"Speedup over the fastest dense baseline\n{environment.device}", fontsize=11)
    save(figure, path)


def _plot_panel(axis: Axes, title: str, records: Sequence[KernelRecord]) -> None:
    tokens = sorted({record.tokens for record in records})
    lines: dict[str, dict[int, float]] = {}
    for record in records:
        name = f"{weight_name(record)}, {record.contender}"
        lines.setdefault(name, {})[record.tokens] = record.speedup
    for name, points in lines.items():
        at = [tokens.index(count) for count in points]
        axis.plot(at, list(points.values()), marker="o", label=name)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_xticks(range(len(tokens)), [str(count) for count in tokens])
    axis.set_xlabel("tokens")
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)


def weight_name(record: KernelRecord) -> str:
    """Structure, sparsity and values in a few characters."""
    at = f"@{record.sparsity:g}" if record.structure.startswith(("unstructured", "block")) else ""
    return f"{record.structure}{at} {record.values}"


def _case(record: KernelRecord) -> tuple[object, ...]:
    return (record.shape, record.layer, record.tokens, weight_name(record))


def _row(record: KernelRecord, first: bool) -> tuple[str, ...]:
    name = f"{record.shape} {record.layer} [{record.out_features}, {record.in_features}]"
    case = (name, f"{record.tokens:,}", weight_name(record)) if first else ("", "", "")
    times = (record.p20_us, record.p50_us, record.p80_us)
    return (
        *case,
        record.contender,
        *(f"{time:,.1f}" if time < 1000 else f"{time:,.0f}" for time in times),
        f"{record.dense_gflops:,.0f}",
        f"{record.gb_per_s:,.1f}",
        f"{record.roofline_percent:.0f}",
        record.bound,
        f"{record.speedup:.2f}",
    )


def _style(record: KernelRecord) -> str | None:
    if record.baseline:
        return "dim"
    return "bold" if record.chosen else None


def _ceilings(record: KernelRecord) -> str:
    copies = ", ".join(
        f"{int(size) / 2**20:g} MiB {speed:,.0f}"
        for size, speed in list(record.roofline["copy_gb_s"].items())[::3]
    )
    peaks = ", ".join(f"{name} {gops:,.0f}" for name, gops in record.roofline["peak_gops"].items())
    return (
        f"measured ceilings, threads: {record.threads}; copy GB/s {copies}; dense 10^9 op/s {peaks}"
    )
