"""The reproduction suite: its table of experiments, its runner's order, what its view shows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from sparse_runtime.benchmarks.repro import running, timing
from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS, QUICK
from sparse_runtime.benchmarks.repro.experiments import DENSE, TEACHER, Experiment
from sparse_runtime.benchmarks.repro.making import LONGER, Bench, Maker
from sparse_runtime.benchmarks.repro.records import Latency, Run, append, read
from sparse_runtime.benchmarks.repro.running import Job, plan
from sparse_runtime.benchmarks.repro.smoke import SMOKE, findings
from sparse_runtime.benchmarks.repro.tasks import TINY, load_task
from sparse_runtime.benchmarks.repro.view import plot, rows, table


def run_of(name: str, packed: float, **fields: Any) -> Run:
    values: dict[str, Any] = {
        "task": "banking77",
        "seed": 0,
        "scale": "full",
        "metric": "accuracy",
        "trained": None,
        "dense": 0.9,
        "sparsity": 0.5,
        "linears_bytes": 6_700_000,
        "weights_bytes": 55_000_000,
        "directory_bytes": 56_000_000,
        "structures": {"2:4 int8": 36},
        "seconds": 1.0,
        "steps": 0,
        "settings": [],
        "environment": {},
    }
    return Run(experiment=name, packed=packed, **{**values, **fields})


def latency_of(name: str, batch: int, p50_ms: float) -> Latency:
    return Latency(name, "banking77", 4, batch, 128, 128 * batch, p50_ms, 70, {})


def test_names_are_unique_and_partners_exist_on_the_same_tasks() -> None:
    places = [(e.name, task) for e in EXPERIMENTS for task in e.tasks]
    assert len(places) == len(set(places))
    for experiment in EXPERIMENTS:
        for task in experiment.tasks:
            for name in filter(None, (*experiment.needs, experiment.against)):
                assert (name, task) in places, f"{experiment.name} needs {name} on {task}"
    assert set(QUICK) | set(SMOKE) <= {e.name for e in EXPERIMENTS}


def test_every_experiment_that_is_gone_on_from_has_a_checkpoint() -> None:
    places = {(e.name, task): e for e in EXPERIMENTS for task in e.tasks}
    for (_, task), experiment in places.items():
        for name in experiment.given.values() if experiment.recipe else ():
            start = places[name, task]
            assert start.recipe or start.one_shot, f"{name} writes no checkpoint"


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e.recipe], ids=lambda e: e.name)
def test_changes_fit_their_recipes(experiment: Experiment, tmp_path: Path) -> None:
    for scale in ("full", "long", "quick"):
        for task in experiment.tasks:
            recipe = Maker(Bench(tmp_path, tmp_path, scale), experiment, task, 0).recipe()
            assert set(experiment.given) <= {stage.name for stage in recipe.stages[:-1]}


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e.recipe], ids=lambda e: e.name)
def test_long_runs_train_students_longer(experiment: Experiment, tmp_path: Path) -> None:
    full, long = (
        Maker(Bench(tmp_path, tmp_path, scale), experiment, experiment.tasks[0], 0).recipe()
        for scale in ("full", "long")
    )
    for stage, longer in zip(full.stages, long.stages, strict=True):
        times = 1 if stage.name == TEACHER else LONGER
        assert longer.epochs == (stage.epochs and times * stage.epochs)
        assert longer.steps == (stage.steps and times * stage.steps)


def test_places_of_experiments_differ(tmp_path: Path) -> None:
    places = {Bench(tmp_path, tmp_path, "full").place(e.name, "mr", 0) for e in EXPERIMENTS}
    assert len(places) == len({e.name for e in EXPERIMENTS})


def test_plan_takes_every_experiment_once_before_the_next_seed() -> None:
    jobs = plan(EXPERIMENTS, ["mr"], seeds=2)
    half = len(jobs) // 2
    assert {job.seed for job in jobs[:half]} == {0}
    assert [job.experiment for job in jobs[:half]] == [job.experiment for job in jobs[half:]]


def test_a_run_waits_for_what_it_goes_on_from() -> None:
    by_name = {e.name: e for e in EXPERIMENTS}
    later = Job(by_name["2:4 INT8, OBS, then trained"], "mr", 0)
    dense = run_of(DENSE, 0.9, task="mr")
    start = run_of("2:4 floats, OBS, one-shot", 0.8, task="mr")
    known = {dense.key: dense}
    assert list(running._ready([later], known, "full")) == []
    known[start.key] = start
    assert list(running._ready([later], known, "full")) == [later]
    assert list(running._ready([later], known, "quick")) == []


def test_the_last_line_of_a_run_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for record in (run_of("a", 0.1), run_of("a", 0.2), run_of("a", 0.3, seed=1)):
        append(record, file)
    append(latency_of("a", 1, 2.0), file)
    with file.open("a") as lines:
        lines.write(json.dumps({"kind": "peer"}) + "\n")
    runs, latencies = read(file)
    assert [(run.seed, run.packed) for run in runs] == [(0, 0.2), (1, 0.3)]
    assert [one.p50_ms for one in latencies] == [2.0]


def test_table_says_what_was_reached_and_against_whom(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    good, base = "2:4 INT8, OBS, one-shot", "2:4 INT8, magnitude, one-shot"
    for record in (run_of(DENSE, 0.9), run_of(base, 0.5), run_of(good, 0.89)):
        append(record, file)
    append(run_of(good, 0.87, seed=1), file)
    append(latency_of(good, 1, 1.5), file)
    append(latency_of("dense INT8, OpenVINO", 1, 9.25), file)
    append(latency_of("dense FP32, transformers", 1, 12.5), file)
    append(run_of("dense INT8, OpenVINO", 0.882, weights_bytes=23_000_000), file)
    lines = table(file, "full", "banking77").splitlines()
    assert len(lines) == 2 + 3 + 2
    row = next(line for line in lines if good in line)
    assert "98.0%, **missed**" in row  # 97.8 %, the mean of two seeds
    assert f"+39.00 over {base}" in row  # seed 0 alone has a partner
    assert "0.8800 ± 0.0141" in row and " 1.50 |" in row
    assert "100.00%" in lines[-2] and "12.50" in lines[-2]
    assert "98.00%" in lines[-1] and "23.0" in lines[-1] and "9.25" in lines[-1]
    timed = table(file, "full", "banking77", timed=True).splitlines()
    assert len(timed) == 2 + 1 + 2
    assert timed[0].count("|") == timed[2].count("|") == 8 and " 55.0 | 1.50 |" in timed[2]
    append(run_of(base, 0.5, seed=1), file)
    assert f"+38.00 ± 1.41 over {base}" in table(file, "full", "banking77")


def test_latencies_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for name, device, p50_ms in (("a", "x", 1.0), ("b", "x", 2.0), ("a", "y", 3.0)):
        append(replace(latency_of(name, 1, p50_ms), environment={"device": device}), file)
    assert [(one.experiment, one.p50_ms) for one in read(file)[1]] == [("a", 3.0)]
    # Nor do those of two numbers of threads.
    more = replace(latency_of("b", 1, 4.0), environment={"device": "y"}, threads=1)
    append(more, file)
    assert read(file)[1] == [more]


def _killed(*_: object) -> None:
    os._exit(9)


def test_a_process_that_is_killed_ends_the_suite_with_what_is_to_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "make", _killed)
    monkeypatch.setattr(running, "get_context", lambda _: get_context("fork"))
    dense = next(one for one in EXPERIMENTS if one.name == DENSE)
    jobs = [Job(dense, "mr", seed) for seed in range(3)]
    bench = Bench(tmp_path, tmp_path, "full")
    (said,) = running.run_all(jobs, bench, tmp_path / "results.jsonl", 2)
    assert "was killed" in said and "fewer --jobs" in said and "seed 0" in said


def test_the_first_seed_whose_model_is_there_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.jsonl"
    for seed in (2, 0, 1):
        append(run_of(DENSE, 0.9, seed=seed), file)
    append(run_of("dense INT8", 0.9), file)  # its packed model is not there
    bench = Bench(tmp_path, tmp_path, "full")
    for seed in (1, 2):
        (bench.place(DENSE, "banking77", seed) / "packed").mkdir(parents=True)
    seen: dict[str, Path] = {}

    def times(models: dict[str, Path], *_: object) -> list[tuple[str, Any, list[float]]]:
        seen.update(models)
        return [(name, (1, 128, ()), [0.002, 0.001, 0.004]) for name in models]

    monkeypatch.setattr(timing, "times", times)
    monkeypatch.setattr(timing, "_sentences", lambda *_: (2, 9, (9, 4)))
    timing.time_all(tmp_path, file, None, 4, ["banking77"])
    assert seen == {DENSE: bench.place(DENSE, "banking77", 1) / "packed"}
    (found,) = read(file)[1]
    assert (found.experiment, found.tokens, found.p50_ms) == (DENSE, 128, 2.0)


def test_embedding_goals_are_losses(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for packed in (0.858, 0.854):
        run = run_of("dense INT8", packed, task="stsb_open", metric="spearman", dense=0.862)
        append(run, file)
        (row,) = rows(file, "full", "stsb_open")
        assert row.reached is (packed == 0.858)


def test_plot_needs_latencies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "results.jsonl"
    append(run_of(DENSE, 0.9), file)
    with pytest.raises(ValueError, match="latency"):
        plot(file, "full", tmp_path / "plot.png")
    append(latency_of(DENSE, 1, 1.5), file)
    plot(file, "full", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_smoke_finds_a_packed_model_that_answers_otherwise() -> None:
    runs = [run_of(name, 0.95, trained=0.95, sparsity=0.98) for name in SMOKE]
    assert findings(runs) == []
    last = list(SMOKE)[-1]
    (apart,) = findings([*runs[:-1], run_of(last, 0.9, trained=0.95, sparsity=0.98)])
    assert "0.9 by our runtime" in apart
    (filled,) = findings([*runs[:-1], run_of(last, 0.95, sparsity=0.4)])
    assert "0.400 zeros" in filled
    assert findings(runs[:-1]) == [f"{last}: did not run"]
    (weak,) = findings([run_of(DENSE, 0.8), *runs[1:]])
    assert "expected 0.9" in weak


def test_tiny_task_needs_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE_RUNTIME_DATA", str(tmp_path))
    data = load_task(TINY)
    assert data.dev is not None and data.test is not None
    assert set(data.test.labels or ()) == {0, 1}
    assert not set(data.train.texts) & set(data.test.texts)
    with pytest.raises(ValueError, match="expected one of"):
        load_task("imdb")
