"""The demo's measurements as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sparse_runtime.benchmarks.figures import new_figure, save
from sparse_runtime.testing import Timing


@dataclass(frozen=True)
class Variant:
    """One model of the demo, the original or a packed one.

    Attributes:
        name: what it is called in tables.
        linears_bytes: its encoder's weight matrices.
        disk_bytes: its file of weights, everything included.
        cosine: mean and smallest cosine of its embeddings to the original's.
        spearman: rank correlation with people's scores, or None without data.
        timings: workload -> times of one batch.
        sequences: workload -> sequences in a batch.
    """

    name: str
    linears_bytes: int
    disk_bytes: int
    cosine: tuple[float, float]
    spearman: float | None
    timings: dict[str, Timing]
    sequences: dict[str, int]


def summary_table(variants: Sequence[Variant]) -> Table:
    """Size, fidelity and latency side by side; the first variant is the original."""
    original = variants[0]
    table = Table(title="Size, fidelity and latency", title_justify="left")
    table.add_column("", style="bold", no_wrap=True)
    for variant in variants:
        table.add_column(variant.name, justify="right")
    table.add_row(
        "encoder weights",
        *(_size(v.linears_bytes, original.linears_bytes) for v in variants),
    )
    table.add_row(
        "file of weights, embeddings included",
        *(_size(v.disk_bytes, original.disk_bytes) for v in variants),
        end_section=True,
    )
    table.add_row("cosine to the original, mean", *(f"{v.cosine[0]:.4f}" for v in variants))
    table.add_row("cosine to the original, smallest", *(f"{v.cosine[1]:.4f}" for v in variants))
    table.add_row(
        "Spearman with people's scores",
        *("no data" if v.spearman is None else f"{v.spearman:.4f}" for v in variants),
        end_section=True,
    )
    for workload in original.timings:
        table.add_row(f"{workload}, median", *(_latency(v, original, workload) for v in variants))
        if original.sequences[workload] > 1:
            rates = [v.sequences[workload] / v.timings[workload].median for v in variants]
            table.add_row("  sentences/s", *(f"{rate:,.0f}" for rate in rates))
    return table


def plot(variants: Sequence[Variant], path: Path, device: str) -> None:
    """Three panels: bytes, fidelity, and time against the original.

    Raises:
        ImportError: matplotlib is not installed.
    """
    names = [variant.name for variant in variants]
    colors = [f"C{i}" for i in range(len(names))]
    figure = new_figure(12, 4)
    size, fidelity, latency = figure.subplots(1, 3, width_ratios=[1, 1, 1.6])
    megabytes = [variant.disk_bytes / 1e6 for variant in variants]
    size.bar_label(size.bar(names, megabytes, color=colors), fmt="%.1f")
    size.set_title("file of weights, MB")
    scores = [variant.spearman for variant in variants]
    if None in scores:
        bars = fidelity.bar(names, [variant.cosine[0] for variant in variants], color=colors)
        fidelity.set_title("mean cosine to the original")
    else:
        bars = fidelity.bar(names, [score or 0.0 for score in scores], color=colors)
        fidelity.set_title("Spearman, sentence similarity")
    fidelity.bar_label(bars, fmt="%.3f")
    fidelity.set_ylim(0, 1.1)
    workloads = list(variants[0].timings)
    width = 0.8 / len(variants)
    for index, variant in enumerate(variants):
        at = [number - 0.4 + (index + 0.5) * width for number in range(len(workloads))]
        speeds = [variants[0].timings[w].median / variant.timings[w].median for w in workloads]
        drawn = latency.bar(at, speeds, width, label=variant.name, color=colors[index])
        latency.bar_label(drawn, fmt="%.2f", fontsize=8)
    latency.set_xticks(range(len(workloads)), workloads, fontsize=8)
    latency.set_title("speed, transformers FP32 = 1")
    latency.axhline(1, color="black", linewidth=0.8, linestyle="--")
    latency.legend(fontsize=8)
    for axis in (size, fidelity):
        axis.tick_params(axis="x", labelsize=8)
    figure.suptitle(f"all-MiniLM-L6-v2 on {device}", fontsize=11)
    save(figure, path)


def _size(size: int, original: int) -> str:
    return f"{size / 1e6:.1f} MB ({original / size:.2f}×)"


def _latency(variant: Variant, original: Variant, workload: str) -> str:
    own, theirs = variant.timings[workload].median, original.timings[workload].median
    return f"{own * 1e3:.1f} ms ({theirs / own:.2f}×)"
