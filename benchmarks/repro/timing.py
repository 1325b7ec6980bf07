"""Latency of the packed models that runs left, and of the peers, in turns on one machine.

Times do not depend on what a model was trained for, its zeros and values aside, so the models of
one seed stand for all: the first of which the packed model is there. The peers run a dense model of
the same shape (benchmarks/peers/install.sh).
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sparse_runtime.benchmarks.peer_process import Worker
from sparse_runtime.benchmarks.records import environment
from sparse_runtime.benchmarks.repro.making import Bench
from sparse_runtime.benchmarks.repro.peer_accuracy import OPENVINO
from sparse_runtime.benchmarks.repro.records import Latency, Run, append, read
from sparse_runtime.benchmarks.repro.tasks import load_task

SCALE = "full"
SENTENCES = 32
ROUNDS, PASSES = 5, 10
OURS = "sparse-runtime:cpu"
TRANSFORMERS = "dense FP32, transformers"
PEERS = {TRANSFORMERS: "transformers:fp32", OPENVINO: "openvino:int8"}
"""Name in the table -> contender of benchmarks/peers/worker.py."""
PEER_MODEL = Path("models") / "minilm-dense"

Workload = tuple[int, int, tuple[int, ...]]


def time_all(
    folder: Path,
    results: Path,
    peers: Path | None,
    threads: int,
    tasks: Sequence[str],
    only: str = "",
) -> None:
    """Time what has a run and its packed model, and the peers; append a line for each batch.

    Batches: one text of 128 tokens, and 32 real sentences of the task.

    Args:
        folder: of the runs.
        results: read for the runs, and appended to.
        peers: environments and models of the peers; None leaves them out.
        threads: of every contender.
        tasks: whose models to time.
        only: regular expression; experiments in whose name it is found, and the peers.
    """
    runs = [
        run for run in read(results)[0] if run.scale == SCALE and re.search(only, run.experiment)
    ]
    around = asdict(environment())
    for task in tasks:
        models: dict[str, Path] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            path = _packed(folder, run)
            if run.task == task and path.is_dir():
                models.setdefault(run.experiment, path)
        if not models:
            continue
        workloads = [(1, 128, ()), _sentences(task, next(iter(models.values())))]
        for name, workload, found in times(models, peers, workloads, threads):
            batch, length, lengths = workload
            record = Latency(
                experiment=name,
                task=task,
                threads=threads,
                batch=batch,
                length=length,
                tokens=sum(lengths) or batch * length,
                p50_ms=1e3 * statistics.median(found),
                passes=len(found),
                environment=around,
            )
            append(record, results)
            print(f"{name}, {task}, {batch} x {length}: {record.p50_ms:.2f} ms", flush=True)


def times(
    models: Mapping[str, Path], peers: Path | None, workloads: Sequence[Workload], threads: int
) -> Iterator[tuple[str, Workload, list[float]]]:
    """Seconds of all passes, contenders in turns, round by round."""
    home = peers or Path()
    workers = {name: Worker(home, OURS, path, threads) for name, path in models.items()}
    if peers is not None:
        for name, peer in PEERS.items():
            workers[name] = Worker(peers, peer, peers / PEER_MODEL, threads)
    try:
        for workload in workloads:
            found: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(ROUNDS):
                for name, worker in workers.items():
                    found[name] += _turn(name, worker, workload)
            yield from ((name, workload, one) for name, one in found.items() if one)
    finally:
        for worker in workers.values():
            worker.close()


def _turn(name: str, worker: Worker, workload: Workload) -> tuple[float, ...]:
    if worker.error:
        print(f"{name}: does not run: {worker.error}", file=sys.stderr)
        return ()
    batch, length, lengths = workload
    answer = worker.run(batch, length, PASSES, lengths=lengths)
    if answer.error:
        print(f"{name}: {answer.error}", file=sys.stderr)
        worker.error = answer.error
    return answer.seconds


def _packed(folder: Path, run: Run) -> Path:
    place = Bench(Path(), folder, run.scale).place(run.experiment, run.task, run.seed)
    return (place / "packed").resolve()


def _sentences(task: str, tokenizer_from: Path) -> Workload:
    from transformers import AutoTokenizer

    test = load_task(task).test
    assert test is not None
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from, local_files_only=True)
    lengths = tuple(len(ids) for ids in tokenizer(list(test.texts[:SENTENCES])).input_ids)
    return len(lengths), max(lengths), lengths
