"""The papers' methods, each against its own ablation, at equal sparsity and epochs."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_runtime.benchmarks.repro.experiments import DENSE, TEACHER, Experiment
from sparse_runtime.benchmarks.repro.table import (
    EMBEDDING,
    EPOCHS,
    FAST,
    FLOAT_2_4,
    INT8,
    LONG,
    NINETY,
    OBS_2_4,
    pruned,
    stage,
    student,
)

# Masked LM predicts each of 30,000 words: a step of it costs as much as two of fine-tuning.
_MASKED_LM = (
    "*.bf16=true",
    *stage("teacher-preparation", "steps=300", "batch_size=32"),
    *stage("prune", "steps=600", "batch_size=32"),
    *student("transfer", 5),
    *stage("transfer", "batch_size=64"),
    *student("quantize", 1, "5.0e-5"),
    *stage("quantize", "batch_size=64"),
)
_UNTAUGHT = tuple(
    change
    for name in ("prune", "transfer", "quantize")
    for change in stage(name, "distillation.task=1", "distillation.logits=0")
)
_NO_QAT = "Prune Once for All 85 %, INT8 without QAT"


def prune_once_for_all() -> tuple[Experiment, ...]:
    """With and without distillation, rewinding and quantization-aware training."""
    whole = "Prune Once for All 85 % INT8"
    variants = {
        whole: ((), None),
        f"{whole}, no distillation": (_UNTAUGHT, whole),
        f"{whole}, no rewinding": (stage("prune", "lr_schedule=linear"), whole),
    }
    group = "Prune Once for All"
    found = [
        Experiment(
            name,
            group,
            recipe="prune-once-for-all",
            # All but its last stage is what is measured without quantization-aware training.
            given={TEACHER: DENSE, **({"transfer": _NO_QAT} if name == whole else {})},
            changes=(*_MASKED_LM, *more),
            against=against,
        )
        for name, (more, against) in variants.items()
    ]
    untrained = Experiment(
        _NO_QAT,
        group,
        recipe="prune-once-for-all",
        until="transfer",
        changes=_MASKED_LM,
        convert=INT8,
        against=whole,
    )
    return (*found, untrained)


def _recipe(
    name: str,
    group: str,
    recipe: str,
    structure: str,
    *more: str,
    against: str | None = None,
    per_task: Mapping[str, tuple[str, ...]] | None = None,
    quick: tuple[str, ...] = (),
) -> Experiment:
    return Experiment(
        name,
        group,
        recipe=recipe,
        changes=pruned(structure, *more),
        per_task=per_task or {},
        quick=quick,
        convert=INT8,
        against=against,
    )


def _sparsebert() -> tuple[Experiment, ...]:
    structure, group = "unstructured@0.95", "SparseBERT"
    plain = Experiment(
        "95 % INT8, gradual magnitude",
        group,
        recipe="gradual-magnitude",
        given={},
        changes=pruned(structure),
        convert=INT8,
    )
    taught = _recipe(
        "95 % INT8, gradual magnitude, soft labels", group, "gradual-magnitude-distilled",
        structure, against=plain.name,
    )  # fmt: skip
    # The authors' soft labels weigh 1 / classes; the recipe's weight is that of two.
    weighed = {"banking77": stage("prune", "distillation.logits=0.013")}
    whole = _recipe(
        "SparseBERT 95 % INT8", group, "sparsebert", structure, "lr_schedule=linear",
        against=plain.name, per_task=weighed,
    )  # fmt: skip
    alone = _recipe(
        f"{whole.name}, no distillation", group, "sparsebert", structure, "lr_schedule=linear",
        "distillation={task: 1, attention: 0, hidden: 0, logits: 0}", against=whole.name,
    )  # fmt: skip
    return plain, taught, whole, alone


_HEADS = (
    *FAST,
    *stage("prune", f"epochs={EPOCHS}", "learning_rate=2.0e-4", "dropout=0"),
)
"""One epoch after each of five steps of pruning."""


def _cap() -> tuple[Experiment, ...]:
    structure, group = "unstructured@0.97", "CAP"
    quick = stage("prune", "epochs=3")
    without = _recipe("97 % INT8, movement", group, "movement", structure, quick=quick)
    whole = _recipe("CAP 97 % INT8", group, "cap", structure, against=without.name, quick=quick)
    soft = Experiment(
        "soft movement INT8",
        group,
        recipe="soft-movement",
        # Some hundred steps, not tens of thousands: slower scores would not reach the threshold.
        changes=(
            *FAST,
            *student("prune"),
            *stage("prune", "pruning.score_learning_rate=8.0e-2"),
        ),
        convert=INT8,
    )
    without_banks = Experiment(
        "heads and neurons 50 % INT8",
        group,
        recipe="cap-structured",
        changes=(*_HEADS, *stage("prune", "distillation.contrastive=null")),
        convert=INT8,
    )
    with_banks = Experiment(
        "CAP heads and neurons 50 % INT8",
        group,
        recipe="cap-structured",
        changes=(*_HEADS, *stage("prune", "distillation.contrastive.snapshot_epochs=1")),
        convert=INT8,
        against=without_banks.name,
    )
    return without, whole, soft, without_banks, with_banks


def _obert() -> tuple[Experiment, ...]:
    changes = pruned(
        "unstructured@0.9",
        "pruning.gradients=128",
        "final_learning_rate=3.0e-5",
        "warmup=0",
        epochs=LONG,
    )
    return (
        Experiment(
            "oBERT 90 % INT8", "oBERT", recipe="obert", changes=changes, convert=INT8,
            against=NINETY,
        ),
    )  # fmt: skip


def _group_lasso() -> tuple[Experiment, ...]:
    structure, group = "block:1x4@0.8", "group lasso"
    partner = _recipe(
        "1x4 blocks 80 % INT8, magnitude", group, "gradual-magnitude-distilled", structure,
        f"start={TEACHER}",
    )  # fmt: skip
    # The same removal and retraining, without the penalty.
    at_once = _recipe(
        "1x4 blocks 80 % INT8, magnitude, at once", group, "group-lasso", structure,
        "pruning.regularization=0", against=partner.name,
    )  # fmt: skip
    gradient, proximal = (
        _recipe(
            f"1x4 blocks 80 % INT8, group lasso, {by}", group, "group-lasso", structure,
            f"pruning.by={by}", against=at_once.name,
        )
        for by in ("gradient", "proximal")
    )  # fmt: skip
    return partner, at_once, gradient, proximal


def _nxmiformer() -> tuple[Experiment, ...]:
    group = "NxMiFormer"
    masked = "compress.pruning={method: masked-ste, structure: '2:4'}"
    shared = (
        *FAST,
        *stage("compress", f"epochs={EPOCHS}", "learning_rate=3.0e-4", "dropout=0"),
    )
    found: list[Experiment] = []
    for values in ("int8", "int4"):
        word = f"2:4 {values.upper()}"
        weights = stage("compress", f"quantization.weights={values}")
        projected = Experiment(
            f"{word}, projected once",
            group,
            {"to": "2:4", "method": "magnitude", "values": values, "scales": "chunk:32",
             "activations": "symmetric"},
        )  # fmt: skip
        ste = Experiment(
            f"{word}, masked STE", group, recipe="nxmiformer", changes=(*shared, *weights, masked)
        )
        admm = Experiment(
            f"NxMiFormer {word}, ADMM", group, recipe="nxmiformer", changes=(*shared, *weights),
            against=ste.name,
        )  # fmt: skip
        found += [projected, ste, admm]
    searched = Experiment(
        "searched for the size of 2:4 INT8, masked STE", group, recipe="nxmiformer",
        changes=(*shared, masked), search=0.15625, against="2:4 INT8, masked STE",
    )  # fmt: skip
    return (*found, searched)


def _embedding() -> tuple[Experiment, ...]:
    def trained(name: str, start: str, goal: float, against: str) -> Experiment:
        return Experiment(
            name,
            "sentence embeddings",
            recipe="embedding-distillation",
            given={"prune": start},
            changes=(*FAST, *student("quantize", 2, "2.0e-4")),
            tasks=EMBEDDING,
            against=against,
            goal=goal,
        )

    blocks = Experiment(
        "1x4 blocks 80 % INT8, embedding distillation",
        "sentence embeddings",
        recipe="embedding-distillation",
        given={},
        changes=(
            *FAST,
            *student("prune", 4),
            *student("quantize", 1, "1.0e-4"),
            *stage("prune", "pruning.structure=block:1x4@0.8"),
        ),
        tasks=EMBEDDING,
        goal=0.03,
    )
    return (
        trained("2:4 INT8, OBS, then embedding distillation", FLOAT_2_4, 0.015, OBS_2_4),
        blocks,
    )


PAPERS: tuple[Experiment, ...] = (
    *prune_once_for_all(),
    *_sparsebert(),
    *_group_lasso(),
    *_nxmiformer(),
    *_cap(),
    *_obert(),
    *_embedding(),
)
