"""A short table of a GPU's results: ours against the fastest that runs the same weights.

python -m sparse_runtime.benchmarks.gpu.view benchmarks/results/nvidia-h100-80gb-hbm3.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_runtime.benchmarks.gpu.records import read
from sparse_runtime.benchmarks.gpu.step import ending
from sparse_runtime.benchmarks.records import FILE_WIDTH

OURS = "ours"
OUR_FAMILIES = ("triton", "mma", "hopper")


def fastest_peer(contenders: Mapping[str, Mapping[str, Any]], field: str) -> str | None:
    """The quickest contender that is not ours, by a time that it may lack."""
    times = {n: c[field] for n, c in contenders.items() if n != OURS and field in c}
    return min(times, key=lambda name: times[name]) if times else None


def latest(lines: Sequence[dict[str, Any]], *key: str) -> list[dict[str, Any]]:
    """Of lines that agree in these fields, the last one written."""
    return list({tuple(line[name] for name in key): line for line in lines}.values())


def linears(lines: Sequence[dict[str, Any]]) -> Table:
    """Microseconds of a layer; products alone are shown, but are no linear and so no peer."""
    table = Table(
        "layer", "weights", "tokens", "ours us", "peer", "us", "ratio", title="Linear layers"
    )
    for line in latest(lines, "shape", "layer", "case", "tokens"):
        found = {n: c for n, c in line["contenders"].items() if not n.endswith("product")}
        where = f"{line['shape']} {line['layer']}"
        row = [where, line["case"], str(line["tokens"])]
        table.add_row(*row, *_cells(found, "p50_us", "{:.1f}", line.get("error")))
    return table


def gemms(lines: Sequence[dict[str, Any]]) -> Table:
    """Microseconds with the weight in memory (in L2): our fastest kernel, our fastest on the same
    weights as if they were dense, and the fastest product of a library."""
    heads = (
        "layer",
        "weights",
        "tokens",
        "kernel",
        "us (L2)",
        "dense / it",
        "library",
        "library / it",
    )
    table = Table(*heads, "MHz", title="Products")
    for line in latest(lines, "shape", "layer", "case", "tokens"):
        timed = {n: c for n, c in line["contenders"].items() if "cold_us" in c and "warm_us" in c}
        ours = {n: c for n, c in timed.items() if n.partition(".")[0] in OUR_FAMILIES}
        best = fastest_peer(ours, "cold_us")
        dense = fastest_peer({n: c for n, c in ours.items() if n.endswith(".dense")}, "cold_us")
        other = fastest_peer({n: c for n, c in timed.items() if n not in ours}, "cold_us")
        row = [f"{line['shape']} {line['layer']}", line["case"], str(line["tokens"])]
        if best is None:
            table.add_row(*row, line.get("error", "-"))
            continue
        time = timed[best]["cold_us"]
        ratios = [f"{timed[n]['cold_us'] / time:.2f}" if n else "-" for n in (dense, other)]
        row += [best, f"{time:.1f} ({timed[best]['warm_us']:.1f})", ratios[0], other or "-"]
        table.add_row(*row, ratios[1], str((line["clocks"] or {}).get("sm_mhz", "-")))
    return table


def rows(lines: Sequence[dict[str, Any]]) -> Table:
    """Microseconds with operands in memory (in L2), and the share of a copy's bandwidth."""
    heads = ("kernel", "shape", "tokens", "contender", "us (L2)", "GB/s", "% of a copy")
    table = Table(*heads, title="Rows, padding and attention")
    for line in latest(lines, "kernel", "shape", "tokens", "lengths"):
        row = [line["kernel"], line["shape"], f"{line['tokens']} {line['lengths']}"]
        for name, found in line["contenders"].items():
            if "cold_us" not in found or "warm_us" not in found:
                reason = str(found.get("skipped", found.get("error", "-")))
                table.add_row(*row, name, reason, "-", "-")
                continue
            rate = found["bytes"] / found["cold_us"] / 1e3
            share = f"{100 * found['copy_share']:.0f}" if "copy_share" in found else "-"
            times = f"{found['cold_us']:.1f} ({found['warm_us']:.1f})"
            table.add_row(*row, name, times, f"{rate:.0f}", share)
    return table


def encoders(lines: Sequence[dict[str, Any]]) -> Table:
    """Milliseconds of a forward pass."""
    heads = ("model", "workload", "tokens", "ours ms", "peer", "ms", "ratio")
    table = Table(*heads, title="Encoders, latency of one call")
    # Compiled contenders that end the program say nothing of ours, measured before without them.
    told = [line for line in lines if not ("error" in line and line["compiled"])]
    for line in latest(told, "model", "workload"):
        if "skipped" in line:
            table.add_row(line["model"], line["workload"], "-", line["skipped"], "-", "-", "-")
            continue
        row = [line["model"], line["workload"], str(line["tokens"])]
        error = line.get("error")
        table.add_row(*row, *_cells(line["contenders"], "latency_p50_ms", "{:.3f}", error))
    return table


def _cells(
    contenders: Mapping[str, Mapping[str, Any]], field: str, form: str, error: str | None
) -> list[str]:
    ours = contenders.get(OURS, {})
    peer = fastest_peer(contenders, field)
    if field not in ours:
        return [
            str(error or ours.get("error", "-")),
            *_peer_cells(contenders, peer, field, form),
            "-",
        ]
    cells = [form.format(ours[field]), *_peer_cells(contenders, peer, field, form)]
    ratio = "-" if peer is None else f"{contenders[peer][field] / ours[field]:.2f}"
    return [*cells, ratio]


def _peer_cells(
    contenders: Mapping[str, Mapping[str, Any]], peer: str | None, field: str, form: str
) -> list[str]:
    return ["-", "-"] if peer is None else [peer, form.format(contenders[peer][field])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=FILE_WIDTH)
    for line in read(path, "gpu_ceilings")[-1:]:
        console.print(line["environment"]["device"], line["ceilings"])
    tables = {
        "gpu_linear": linears,
        "gpu_gemm": gemms,
        "gpu_rows": rows,
        "gpu_encoder": encoders,
    }
    for kind, table in tables.items():
        if lines := read(path, kind):
            console.print(table(lines))
    for line in latest(read(path, "gpu_check"), "part"):
        where = line["environment"]
        console.print(f"{line['part']}: {ending(line)} ({where['commit']}, {where['library']})")


if __name__ == "__main__":
    main()
