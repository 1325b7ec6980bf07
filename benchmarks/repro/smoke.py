"""The whole way in a minute: recipe -> checkpoint -> packed model -> its accuracy by our runtime.

The model has random weights and the data forty sentences, so the figures say nothing but that the
pieces fit: what our runtime answers is what the trainer measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS
from sparse_runtime.benchmarks.repro.experiments import DENSE, TEACHER, Experiment
from sparse_runtime.benchmarks.repro.making import Bench
from sparse_runtime.benchmarks.repro.records import Run, read
from sparse_runtime.benchmarks.repro.running import plan, run_all
from sparse_runtime.benchmarks.repro.table import stage
from sparse_runtime.benchmarks.repro.tasks import TINY
from sparse_runtime.benchmarks.sentences import BUILT_IN

SMOKE = {
    DENSE: stage(TEACHER, "epochs=10", "learning_rate=2.0e-3"),
    "dense INT8": (),
    "2:4 INT8, OBS, one-shot": (),
    "2:4 floats, OBS, one-shot": (),
    "90 % INT8, distilled": stage("prune", "epochs=6", "learning_rate=2.0e-3"),
    "2:4 INT8, OBS, then trained": stage("quantize", "epochs=3", "learning_rate=1.0e-3"),
    "NxMiFormer 2:4 INT8, ADMM": stage("compress", "epochs=3", "learning_rate=1.0e-3"),
    "CAP 97 % INT8": stage("prune", "epochs=6", "learning_rate=2.0e-3"),
}
"""Experiment -> changes that suit a model which begins with random weights."""
SMALL = ("*.batch_size=16",)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
LEAST_DENSE = 0.9
# Of 64 texts two may fall on the other side: float32 sums in another order, INT8 inputs.
MOST_APART = 2 / 64


def run_smoke(folder: Path, processes: int) -> list[str]:
    """Run ``SMOKE`` in a folder.

    Returns:
        What is wrong, a line each; empty where all is well.
    """
    model = make_model(folder / "model")
    results = folder / "results.jsonl"
    jobs = plan(smoke_experiments(), [TINY], seeds=1)
    failures = run_all(jobs, Bench(model, folder / "runs", "smoke"), results, processes)
    return failures + findings(read(results)[0])


def smoke_experiments() -> list[Experiment]:
    """Those of the table that are run, on the tiny task."""
    found = {e.name: e for e in reversed(EXPERIMENTS) if e.name in SMOKE}
    return [
        replace(found[name], tasks=(TINY,), changes=_changes(found[name], changes))
        for name, changes in SMOKE.items()
    ]


def _changes(experiment: Experiment, changes: tuple[str, ...]) -> tuple[str, ...]:
    return (*experiment.changes, *changes, *SMALL) if experiment.recipe else ()


def findings(runs: Iterable[Run]) -> list[str]:
    """What is wrong with the runs."""
    wrong = []
    for run in runs:
        if run.experiment == DENSE and run.packed < LEAST_DENSE:
            wrong.append(f"{run.experiment}: accuracy {run.packed}, expected {LEAST_DENSE}")
        if run.trained is not None and abs(run.packed - run.trained) > MOST_APART:
            wrong.append(
                f"{run.experiment}: accuracy {run.packed} by our runtime, {run.trained} as trained"
            )
        shares = {"2:4": 0.5, "90 %": 0.9, "97 %": 0.97}
        least = next((share for word, share in shares.items() if word in run.experiment), 0.0)
        if run.sparsity < least - 0.005:
            wrong.append(f"{run.experiment}: {run.sparsity:.3f} zeros, expected {least}")
    missing = set(SMOKE) - {run.experiment for run in runs}
    return wrong + [f"{name}: did not run" for name in sorted(missing)]


def make_model(folder: Path) -> Path:
    """A tiny BERT with random weights, and a tokenizer that knows the built-in sentences."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for text in BUILT_IN for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {word: i for i, word in enumerate([*special, *words])}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(ids), **SIZES)).save_pretrained(folder)
    BertTokenizer(vocab=ids, model_max_length=128).save_pretrained(folder)
    return folder
