"""A contender's process: started with its model, and whatever goes wrong is an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.benchmarks import peer_process
from sparse_runtime.benchmarks.peer_process import ENDED, SILENT, Answer, Worker

OURS = "sparse-runtime:cpu"
SetPlans = Callable[[dict[str, dict[str, Any]]], None]


def test_a_worker_is_started_with_its_model_and_threads(
    tmp_path: Path, set_plans: SetPlans
) -> None:
    set_plans({"openvino:int8": {"seconds": 0.5}})
    worker = Worker(tmp_path, "openvino:int8", tmp_path / "model", 3)
    try:
        assert worker.error is None
        assert worker.version == f"openvino:int8/{tmp_path / 'model'}/3/3"
        assert worker.run(2, 4, 3) == Answer((2.0, 4.0, 16.0), 7.0)
    finally:
        worker.close()
    worker.close()  # once more does no harm


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        pytest.param({"error": "ImportError: no peer"}, "ImportError: no peer", id="says so"),
        pytest.param({"exits": True}, ENDED, id="ends without a word"),
    ],
)
def test_a_worker_that_does_not_start_says_why(
    plan: dict[str, Any], error: str, tmp_path: Path, set_plans: SetPlans
) -> None:
    set_plans({OURS: plan})
    worker = Worker(tmp_path, OURS, tmp_path, 1)
    assert (worker.error, worker.version) == (error, "")
    worker._process.wait()  # type: ignore[union-attr]
    assert worker.run(1, 1, 1) == Answer(error=ENDED)
    worker.close()


def test_a_worker_without_its_environment_says_so(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "deepsparse:int8", tmp_path, 1)
    assert worker.error is not None and "ds/bin/python" in worker.error
    assert worker.run(1, 1, 1) == Answer(error=ENDED)
    worker.close()


def test_an_answer_cut_off_and_a_failed_pass_are_told_apart(
    tmp_path: Path, set_plans: SetPlans
) -> None:
    set_plans({OURS: {"seconds": 1.0, "fails_at": 0, "dies_at": 2}})
    worker = Worker(tmp_path, OURS, tmp_path, 1)
    assert worker.run(1, 1, 1) == Answer(error="RuntimeError: out of memory")
    assert worker.run(1, 1, 1) == Answer((1.0,), 7.0)  # it goes on after an error
    assert worker.run(1, 1, 1) == Answer(error=ENDED)
    # The pipe is broken before the system has told that the process is gone.
    assert worker.run(1, 1, 1) == Answer(error=ENDED)
    worker.close()


def test_a_worker_that_hangs_is_ended(
    tmp_path: Path, set_plans: SetPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_plans({OURS: {"seconds": 1.0, "hangs_at": 1}})
    worker = Worker(tmp_path, OURS, tmp_path, 1)
    assert worker.run(1, 1, 1).error is None
    monkeypatch.setattr(peer_process, "LONGEST_WAIT_S", 0.05)
    assert worker.run(1, 1, 1) == Answer(error=SILENT)
    assert worker._process.poll() is not None  # type: ignore[union-attr]
    assert worker.run(1, 1, 1) == Answer(error=ENDED)


def test_the_real_worker_answers_why_a_peer_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peer_process.HOMES, "nobody", "ours")
    worker = Worker(tmp_path, "nobody:int8", tmp_path, 1)
    assert worker.error == "KeyError: 'nobody'"
    worker.close()
