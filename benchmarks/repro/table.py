"""The experiments themselves.

What partners share is written once, so that they differ in the one thing their comparison is about.
Everything is scaled down to some thousand short sentences and a model of 11 million weights in its
encoder: batches of 64; students learn at 5e-4 where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparse_runtime.benchmarks.repro.experiments import DENSE, TEACHER, Experiment

FAST = ("*.bf16=true", "*.batch_size=64")
EMBEDDING = ("stsb_open",)
INT8 = {"values": "int8"}
EPOCHS = 5
"""Of pruning, in the papers' comparisons; all methods of one have as many."""
LONG = 10
"""Of pruning, where a goal is to be reached."""
FROZEN = "freeze=['.*word_embeddings.*']"


def stage(name: str, *changes: str) -> tuple[str, ...]:
    """Changes of one stage."""
    return tuple(f"{name}.{change}" for change in changes)


def student(name: str, epochs: int = EPOCHS, rate: str = "5.0e-4") -> tuple[str, ...]:
    """What every stage that trains a student shares.

    All of it learns: so few steps need the embeddings, which movement pruning's authors freeze.
    """
    return stage(
        name,
        f"epochs={epochs}",
        f"learning_rate={rate}",
        "warmup=0.05",
        "dropout=0",
        "freeze=[]",
    )


def pruned(structure: str, *more: str, epochs: int = EPOCHS) -> tuple[str, ...]:
    """Changes of a recipe whose stage "prune" does it all."""
    return (
        *FAST,
        *student("prune", epochs),
        *stage("prune", f"pruning.structure={structure}", *more),
    )


def one_shot(
    name: str, to: str | None, method: str = "obs", *, against: str | None = None,
    goal: float | None = None, loss: float | None = None, **more: object,
) -> tuple[Experiment, ...]:  # fmt: skip
    """One way on all tasks; ``goal`` is a share of accuracy, ``loss`` a loss in Spearman.

    Without ``values`` the checkpoint keeps floats, to be trained on, and packing rounds them to
    INT8 without looking at any text.
    """
    arguments = {"to": to, "method": method, **more}
    return (
        Experiment(name, "one-shot", arguments, against=against, goal=goal),
        Experiment(name, "one-shot", arguments, against=against, goal=loss, tasks=EMBEDDING),
    )


QUICK_TEACHER = stage(TEACHER, "epochs=3")
BASE = (
    Experiment(
        DENSE,
        "dense",
        recipe="dense",
        given={},
        changes=(*FAST, *stage(TEACHER, "learning_rate=3.0e-4", "epochs=5")),
        per_task={"mr": stage(TEACHER, "learning_rate=1.0e-4", "epochs=3")},
        quick=QUICK_TEACHER,
        convert={"values": "fp32"},
    ),
    Experiment(DENSE, "dense", convert={"values": "fp32"}, tasks=EMBEDDING),
    Experiment("dense INT8", "dense", convert=INT8, goal=0.998),
    Experiment("dense INT8", "dense", convert=INT8, tasks=EMBEDDING, goal=0.005),
)

MAGNITUDE_2_4 = "2:4 INT8, magnitude, one-shot"
OBS_2_4 = "2:4 INT8, OBS, one-shot"
FLOAT_2_4 = "2:4 floats, OBS, one-shot"
INT4_2_4 = "2:4 INT4, OBS, one-shot"
BLOCK_ONE_SHOT = "1x4 blocks 80 % INT8, OBS, one-shot"
FLOAT_90, FLOAT_95, FLOAT_97 = (f"{n} % floats, OBS, one-shot" for n in (90, 95, 97))
FLOAT_BLOCK = "1x4 blocks 80 % floats, OBS, one-shot"
ONE_SHOT = (
    *one_shot(MAGNITUDE_2_4, "2:4", "magnitude", values="int8"),
    *one_shot("2:4 INT8, Wanda, one-shot", "2:4", "wanda", values="int8", against=MAGNITUDE_2_4),
    *one_shot(OBS_2_4, "2:4", values="int8", against=MAGNITUDE_2_4, goal=0.98, loss=0.015),
    *one_shot("2:4 INT8, ALPS, one-shot", "2:4", "alps", values="int8", against=OBS_2_4),
    *one_shot(FLOAT_2_4, "2:4"),
    *one_shot(INT4_2_4, "2:4", values="int4", goal=0.98),
    *one_shot("50 % INT8, OBS, one-shot", "unstructured@0.5", values="int8"),
    *one_shot("80 % INT8, OBS, one-shot", "unstructured@0.8", values="int8"),
    *one_shot(BLOCK_ONE_SHOT, "block:1x4@0.8", values="int8", goal=0.985, loss=0.03),
    *one_shot(FLOAT_90, "unstructured@0.9"),
    *one_shot(FLOAT_95, "unstructured@0.95"),
    *one_shot(FLOAT_97, "unstructured@0.97"),
    *one_shot(FLOAT_BLOCK, "block:1x4@0.8"),
)


def copies(epochs: int, *more: str) -> dict[str, tuple[str, ...]]:
    """Where texts are few, copies of them with other words: a student learns the few by heart."""
    augment = ("augment.copies=3", "augment.replace=0.3", "augment.join=0.5")
    return {"mr": stage("prune", f"epochs={epochs}", *augment, *more)}


STATES_FIRST = ("distillation.logits=0.0625", "learning_rate=1.0e-3", "pruning.scope=uniform")
"""More weight on hidden states, and larger steps: chosen on the rows that are set aside."""


WHOLE_2_4 = {"mr": stage("quantize", "freeze=[]", "epochs=8")}


def distilled(
    name: str,
    structure: str,
    goal: float | None = None,
    *more: str,
    per_task: Mapping[str, tuple[str, ...]] | None = None,
) -> Experiment:
    """Gradual magnitude pruning while the dense model teaches; INT8 without further training.

    All matrices are ranked together, word embeddings are trained too, and soft labels weigh as much
    as hidden states.
    """
    return Experiment(
        name,
        "distilled",
        recipe="distilled",
        until="prune",
        changes=pruned(
            structure, "pruning.scope=global", "distillation.logits=1.0", *more, epochs=LONG
        ),
        per_task=per_task or {},
        quick=stage("prune", "epochs=3"),
        convert=INT8,
        goal=goal,
    )


def after_one_shot(
    name: str,
    start: str,
    values: str,
    goal: float,
    against: str | None = None,
    per_task: Mapping[str, tuple[str, ...]] | None = None,
) -> Experiment:
    """A one-shot mask, then training for INT8 or INT4 with its zeros kept."""
    return Experiment(
        name,
        "distilled",
        recipe="distilled",
        given={TEACHER: DENSE, "prune": start},
        changes=(
            *FAST,
            *student("quantize", 4, "2.0e-4"),
            *stage("quantize", FROZEN, f"quantization.weights={values}"),
        ),
        per_task=per_task or {},
        quick=stage("quantize", "epochs=2"),
        against=against,
        goal=goal,
    )


NINETY, NINETY_FIVE, NINETY_SEVEN = (f"{n} % INT8, distilled" for n in (90, 95, 97))
BLOCK_DISTILLED = "1x4 blocks 80 % INT8, distilled"
DISTILLED = (
    distilled("85 % INT8, distilled", "unstructured@0.85", 0.99),
    distilled(NINETY, "unstructured@0.9", 0.98, per_task=copies(3)),
    distilled(NINETY_FIVE, "unstructured@0.95", 0.97),
    distilled(NINETY_SEVEN, "unstructured@0.97", 0.95),
    distilled(BLOCK_DISTILLED, "block:1x4@0.8", 0.985, per_task=copies(6, *STATES_FIRST)),
    after_one_shot("90 % INT8, OBS, then trained", FLOAT_90, "int8", 0.98, NINETY),
    after_one_shot("95 % INT8, OBS, then trained", FLOAT_95, "int8", 0.97, NINETY_FIVE),
    after_one_shot("97 % INT8, OBS, then trained", FLOAT_97, "int8", 0.95, NINETY_SEVEN),
    after_one_shot(
        "1x4 blocks 80 % INT8, OBS, then trained", FLOAT_BLOCK, "int8", 0.985, BLOCK_DISTILLED
    ),
    after_one_shot("2:4 INT8, OBS, then trained", FLOAT_2_4, "int8", 0.995, OBS_2_4, WHOLE_2_4),
    after_one_shot("2:4 INT4, OBS, then trained", FLOAT_2_4, "int4", 0.98, INT4_2_4),
)
