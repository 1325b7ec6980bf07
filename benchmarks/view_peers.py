"""The table and the figure of benchmarks/bench_peers.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sparse_runtime.benchmarks.figures import new_figure, save


@dataclass(frozen=True)
class PeerRecord:
    """One cell of the table.

    Attributes:
        shape: encoder shape.
        row: checkpoint and precision.
        contender: peer or "sparse-runtime".
        version: of its libraries.
        batch: sequences.
        seq: tokens of each, padding included.
        tokens: of all, padding excluded.
        threads: it was given.
        p50_ms: median of all passes.
        min_ms: fastest pass.
        passes: how many.
        peak_mb: largest resident size of its process so far, loading included, in 10^6 bytes.
        cosine: of its output with what it is checked against; None where that did not run.
    """

    shape: str
    row: str
    contender: str
    version: str
    batch: int
    seq: int
    tokens: int
    threads: int
    p50_ms: float
    min_ms: float
    passes: int
    peak_mb: float
    cosine: float | None


@dataclass(frozen=True)
class Comparison:
    """Ours and the fastest peer on one workload."""

    ours: PeerRecord
    peer: PeerRecord

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer.p50_ms / self.ours.p50_ms

    @property
    def row(self) -> tuple[str, str, int]:
        """Shape, checkpoint, threads."""
        return self.ours.shape, self.ours.row, self.ours.threads

    @property
    def padded(self) -> bool:
        """Whether the sequences are of real lengths; such a workload does not count in the mean."""
        return self.ours.tokens < self.ours.batch * self.ours.seq

    @property
    def workload(self) -> str:
        """In words."""
        batch, seq = self.ours.batch, self.ours.seq
        return f"{batch} sentences" if self.padded else f"({batch}, {seq})"


def compare(records: Iterable[PeerRecord]) -> Iterator[Comparison]:
    """One comparison a workload that both ours and a peer have run, in the order of the records."""
    groups: dict[tuple[object, ...], list[PeerRecord]] = {}
    for r in records:
        groups.setdefault((r.shape, r.row, r.threads, r.batch, r.seq, r.tokens), []).append(r)
    for cells in groups.values():
        ours = next((r for r in cells if r.contender.startswith("sparse-runtime")), None)
        peers = [r for r in cells if r is not ours]
        if ours is not None and peers:
            yield Comparison(ours, min(peers, key=lambda r: r.p50_ms))


def mean_ratio(comparisons: Iterable[Comparison]) -> float:
    """Geometric."""
    return float(np.exp(np.mean([np.log(c.ratio) for c in comparisons])))


def show(records: Iterable[PeerRecord]) -> None:
    """Print a table: ours, the fastest peer, the ratio; then each row's geometric mean."""
    table = Table(title="encoder forward, ms (median)")
    for column in ("shape", "checkpoint", "threads", "workload", "ours", "fastest peer", "ratio"):
        table.add_column(column, justify="left" if column in ("shape", "checkpoint") else "right")
    rows: dict[tuple[str, str, int], list[Comparison]] = {}
    for c in compare(records):
        if not c.padded:
            rows.setdefault(c.row, []).append(c)
        shape, row, threads = c.row
        peer = f"{c.peer.contender} {c.peer.p50_ms:.2f}"
        ours = f"{c.ours.p50_ms:.2f}"
        table.add_row(shape, row, str(threads), c.workload, ours, peer, f"{c.ratio:.2f}x")
    console = Console()
    console.print(table)
    for (shape, row, threads), found in rows.items():
        least = min(c.ratio for c in found)
        console.print(
            f"{shape:10} {row:22} {threads} threads: {mean_ratio(found):.2f}x (least {least:.2f}x)"
        )


def plot(records: Iterable[PeerRecord], path: Path) -> None:
    """Bars of the ratios, one group a row and one colour a workload; the line is equal time.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to compare.
    """
    found = list(compare(records))
    if not found:
        raise ValueError("records: expected ours and a peer on one workload at least, got none")
    rows = list(dict.fromkeys(c.row for c in found))
    workloads = list(dict.fromkeys(c.workload for c in found))
    figure = new_figure(8, 1.2 + 0.9 * len(rows))
    axes = figure.subplots()
    height = 0.8 / len(workloads)
    for i, workload in enumerate(workloads):
        own = [c for c in found if c.workload == workload]
        places = [rows.index(c.row) + i * height for c in own]
        axes.barh(places, [c.ratio for c in own], height=0.9 * height, label=workload)
    axes.set_yticks(
        [n + 0.4 - height / 2 for n in range(len(rows))],
        [f"{shape}\n{row}, {threads} threads" for shape, row, threads in rows],
    )
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the fastest peer / ours")
    axes.legend()
    save(figure, path)


def read(path: Path) -> list[PeerRecord]:
    """Records of a JSON-lines file; lines of another kind are passed over."""
    names = {field.name for field in fields(PeerRecord)}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [
        PeerRecord(**{name: line[name] for name in names})
        for line in lines
        if line.get("kind") == "peer"
    ]
