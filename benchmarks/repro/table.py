"""The experiments themselves. Settings that all share are set here once, so that partners differ
in the one thing that their comparison is about."""

from __future__ import annotations

from sparse_runtime.benchmarks.repro.experiments import CLASSIFICATION, DENSE, TEACHER, Experiment

# Scaled down to some thousand sentences; a learning rate of 3e-4 for 23 million weights.
FAST = ("*.bf16=true", "*.batch_size=64")
STUDENT = ("dropout=0", "freeze=['.*word_embeddings.*']", "learning_rate=3.0e-4", "warmup=0.05")
EMBEDDING = ("stsb_open",)


def _stage(name: str, *changes: str) -> tuple[str, ...]:
    return tuple(f"{name}.{change}" for change in changes)


def _sparse(structure: str, *more: str) -> tuple[str, ...]:
    return (*FAST, *_stage("prune", f"pruning.structure={structure}", *more))


BASE = (
    Experiment(
        DENSE,
        "dense",
        recipe="dense",
        given={},
        changes=(*FAST, *_stage(TEACHER, "learning_rate=3.0e-4", "epochs=5")),
        per_task={"mr": _stage(TEACHER, "learning_rate=1.0e-4", "epochs=3")},
        convert={"values": "fp32"},
    ),
    Experiment(DENSE, "dense", convert={"values": "fp32"}, tasks=EMBEDDING),
    Experiment(
        "dense INT8", "dense", convert={"values": "int8"}, goal=0.998
    ),
    Experiment("dense INT8", "dense", convert={"values": "int8"}, tasks=EMBEDDING, goal=0.005),
)

EXPERIMENTS = BASE
QUICK: tuple[str, ...] = ()
