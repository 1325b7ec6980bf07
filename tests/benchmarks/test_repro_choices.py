"""What to train with is chosen on the rows that are set aside."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("yaml")

from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS
from sparse_runtime.benchmarks.repro.choosing import Choice, append_choice, choices_table, choose
from sparse_runtime.benchmarks.repro.experiments import DENSE, Experiment
from sparse_runtime.benchmarks.repro.making import Bench, Maker
from sparse_runtime.benchmarks.repro.records import read
from sparse_runtime.benchmarks.repro.smoke import make_model, smoke_experiments
from sparse_runtime.benchmarks.repro.table import NINETY
from sparse_runtime.benchmarks.repro.tasks import TINY, load_task

STILL = ("prune.epochs=1", "prune.learning_rate=1.0e-12", "prune.pruning=null")
HARSH = ("prune.epochs=1", "prune.pruning.structure=unstructured@0.97", "prune.warmup=0")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """With a dense model."""
    folder = tmp_path_factory.mktemp("choices")
    bench = Bench(make_model(folder / "model"), folder / "runs", "full")
    short = replace(of_the_table(DENSE), convert={"values": "fp32"})
    short = replace(short, changes=(*short.changes, "teacher.epochs=2"))
    Maker(bench, short, TINY, 0).run(None)
    return bench


def of_the_table(name: str) -> Experiment:
    return next(one for one in smoke_experiments() if one.name == name)


def test_a_student_that_stays_its_teacher_diverges_nowhere(bench: Bench) -> None:
    still = choose(bench, of_the_table(NINETY), TINY, 0, "still", STILL)
    assert still.agreement == 1
    assert 0 <= still.divergence_aside < 1e-6 and 0 <= still.divergence_trained < 1e-6
    # Of 64 texts two may fall on the other side: INT8 inputs.
    assert abs(still.packed - still.teacher) <= 2 / 64
    harsh = choose(bench, of_the_table(NINETY), TINY, 0, "harsh", HARSH)
    assert harsh.divergence_aside > 1e-5 and harsh.divergence_trained > 1e-5
    assert harsh.teacher == still.teacher
    assert harsh.changes[-len(HARSH) :] == list(HARSH)
    with pytest.raises(ValueError, match=r"was made with .*0\.97.* is asked for with .*; remove"):
        choose(bench, of_the_table(NINETY), TINY, 0, "harsh", STILL)
    rows = len(load_task(TINY).train)
    assert harsh.steps == -(-rows // 16)


def test_only_training_with_a_teacher_that_is_there(bench: Bench, tmp_path: Path) -> None:
    one_shot = next(one for one in EXPERIMENTS if one.one_shot is not None)
    with pytest.raises(ValueError, match="expected one that trains by a recipe"):
        choose(bench, one_shot, TINY, 0, "x", ())
    with pytest.raises(ValueError, match=r"seed7.*no such checkpoint; run --only 'dense FP32'"):
        choose(bench, of_the_table(NINETY), TINY, 7, "x", ())


def test_the_last_line_of_a_label_is_shown_beside_the_runs(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    one = Choice("no copies", NINETY, "mr", 0, [], 670, 0.0154, 0.2331, 0.8846, 0.818, 0.8415, {})
    for choice in (replace(one, packed=0.5), one, replace(one, task="banking77")):
        append_choice(choice, file)
    assert choices_table(file, "mr").splitlines()[2:] == [
        f"| {NINETY} | no copies | 0 | 670 | 0.015 | 0.233 | 88.5% | 0.8180 | 0.8415 |"
    ]
    assert read(file) == ([], [])


def test_an_unknown_experiment_is_refused_with_those_there_are() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "bench_repro.py"
    done = subprocess.run(
        [sys.executable, script, "choose", "nothing", "--label", "x", "--model", "."],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "experiment 'nothing': expected one of" in done.stderr and NINETY in done.stderr
