"""OpenVINO's INT8 of the dense models: the accuracy that stands beside its latency."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparse_runtime.benchmarks.records import environment
from sparse_runtime.benchmarks.repro.experiments import CLASSIFICATION, DENSE
from sparse_runtime.benchmarks.repro.making import Bench
from sparse_runtime.benchmarks.repro.measure import MAX_LENGTH
from sparse_runtime.benchmarks.repro.records import Run, append, read
from sparse_runtime.benchmarks.repro.tasks import METRICS, calibration_texts, load_task

OPENVINO = "dense INT8, OpenVINO"
SCRIPT = Path(__file__).resolve().parents[1] / "peers" / "openvino_accuracy.py"
CALIBRATION_ROWS = 300


def measure_openvino(folder: Path, results: Path, peers: Path) -> None:
    """A line for each dense model of the results that has none yet.

    Args:
        folder: of the runs.
        results: read and appended to.
        peers: environments "export" and "ov" (benchmarks/peers/install.sh).
    """
    runs = read(results)[0]
    known = {run.key for run in runs}
    for run in runs:
        key = (OPENVINO, run.task, run.seed, run.scale)
        if run.experiment != DENSE or run.task not in CLASSIFICATION or key in known:
            continue
        place = Bench(Path(), folder, run.scale).place(DENSE, run.task, run.seed)
        try:
            answer = _ask(place / "checkpoint", run.task, peers)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{OPENVINO}, {run.task}: {error}", file=sys.stderr)
            continue
        record = Run(
            experiment=OPENVINO,
            task=run.task,
            seed=run.seed,
            scale=run.scale,
            metric=METRICS[run.task],
            packed=answer["accuracy"],
            trained=None,
            dense=run.dense,
            sparsity=0.0,
            linears_bytes=0,  # its file does not say which bytes are whose
            weights_bytes=answer["bytes"],
            directory_bytes=answer["bytes"],
            structures={},
            seconds=0.0,
            steps=0,
            settings=[f"openvino={answer['version']}", f"calibration={CALIBRATION_ROWS} texts"],
            environment=asdict(environment()),
        )
        append(record, results)
        print(f"{OPENVINO}, {run.task}, seed {run.seed}: {record.packed:.4f}", flush=True)


def _ask(checkpoint: Path, task: str, peers: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        model, tokens = Path(name, "model.onnx"), Path(name, "tokens.npz")
        np.savez(tokens, allow_pickle=False, **_tokens(checkpoint, task))
        orders = {
            "export": ("export", str(checkpoint.resolve()), str(model)),
            "ov": ("evaluate", str(model), str(tokens)),
        }
        for home, order in orders.items():
            done = subprocess.run(
                [str(peers / home / "bin" / "python"), str(SCRIPT), *order],
                capture_output=True,
                text=True,
                check=True,
            )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _tokens(checkpoint: Path, task: str) -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    data = load_task(task)
    assert data.test is not None and data.test.labels is not None

    def arrays(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np"
        )
        return found["input_ids"].astype(np.int64), found["attention_mask"].astype(np.int64)

    calibration_ids, calibration_mask = arrays(calibration_texts(data, CALIBRATION_ROWS))
    ids, mask = arrays(list(data.test.texts))
    return {
        "calibration_ids": calibration_ids,
        "calibration_mask": calibration_mask,
        "ids": ids,
        "mask": mask,
        "labels": np.asarray(data.test.labels),
    }
