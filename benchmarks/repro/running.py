"""Runs the table of experiments: what has its line in the results is passed over."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_runtime.benchmarks.repro.experiments import DENSE, Experiment
from sparse_runtime.benchmarks.repro.records import Run, append, read
from sparse_runtime.benchmarks.repro.tasks import METRICS

if TYPE_CHECKING:
    from sparse_runtime.benchmarks.repro.making import Bench


@dataclass(frozen=True)
class Job:
    """One run to make."""

    experiment: Experiment
    task: str
    seed: int


def plan(experiments: Iterable[Experiment], tasks: Sequence[str], seeds: int) -> list[Job]:
    """All runs, seed by seed: a suite that is stopped early has every experiment once.

    What is trained comes first: it takes longest, and what is short fills the end.
    """
    found = sorted(experiments, key=lambda one: one.recipe is None)
    return [
        Job(experiment, task, seed)
        for seed in range(seeds)
        for task in tasks
        for experiment in found
        if task in experiment.tasks
    ]


def run_all(jobs: Sequence[Job], bench: Bench, results: Path, processes: int) -> list[str]:
    """Make every run that has no line yet; one process a run, with one thread each.

    A batch of short sentences is too little work for several threads, so runs share the cores.

    Args:
        jobs: what to run, dense models among them where they are not there yet.
        bench: where and how.
        results: file of JSON lines.
        processes: runs at a time.

    Returns:
        What went wrong, a line a run.
    """
    scale = bench.scale
    known = {run.key: run for run in read(results)[0]}
    waiting = [job for job in jobs if (job.experiment.name, job.task, job.seed, scale) not in known]
    failures: list[str] = []
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(environment)  # for the processes that are begun
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running: dict[Future[Run], Job] = {}
        while waiting or running:
            for job in _ready(waiting, known, scale):
                if len(running) < processes:
                    waiting.remove(job)
                    dense = known.get((DENSE, job.task, job.seed, scale))
                    metric = None if dense is None else dense.dense
                    running[pool.submit(make, job, bench, metric)] = job
            if not running:
                failures += [f"{_name(job)}: what it goes on from is not there" for job in waiting]
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    run = future.result()
                except BrokenProcessPool:
                    # What ran beside it is lost too, and nothing more can be begun.
                    lost = ", ".join(_name(one) for one in (job, *running.values()))
                    return [
                        *failures,
                        f"a process of {lost} was killed, by the system where memory ran out; run "
                        "again with fewer --jobs: what is done is not made again",
                    ]
                except Exception as error:  # one experiment that fails must not stop the others
                    traceback.print_exception(error, file=sys.stderr)
                    failures.append(f"{_name(job)}: {type(error).__name__}: {error}")
                    continue
                append(run, results)
                known[run.key] = run
                print(_line(run), flush=True)
    return failures


def make(job: Job, bench: Bench, dense_metric: float | None) -> Run:
    """One run, in this process."""
    import torch

    from sparse_runtime.benchmarks.repro.making import Maker

    torch.set_num_threads(1)
    return Maker(bench, job.experiment, job.task, job.seed).run(dense_metric)


def _ready(
    waiting: Sequence[Job], known: dict[tuple[str, str, int, str], Run], scale: str
) -> Iterator[Job]:
    """Those for which all is there that they go on from or are measured against."""
    for job in list(waiting):
        needed = job.experiment.needs
        if all((name, job.task, job.seed, scale) in known for name in needed):
            yield job


def _name(job: Job) -> str:
    return f"{job.experiment.name}, {job.task}, seed {job.seed}"


def _line(run: Run) -> str:
    trained = "" if run.trained is None else f", as trained {run.trained:.4f}"
    return (
        f"{run.experiment}, {run.task}, seed {run.seed}: {METRICS[run.task]} {run.packed:.4f} "
        f"({run.share:.2%} of dense{trained}), {run.sparsity:.0%} zeros, "
        f"{run.linears_bytes / 1e6:.2f} MB, {run.seconds:.0f} s"
    )
