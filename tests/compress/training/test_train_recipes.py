"""Every recipe that comes along, run for a few steps; what it writes is opened and packed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import sparse_runtime as sr
from sparse_runtime.compress.training.reading import load_recipe, recipe_names
from sparse_runtime.compress.training.recipe import Recipe
from sparse_runtime.compress.training.run import train

# Recipe -> the share of zeros that its result has in the encoder's matrices.
LABELLED = {
    "dense": 0.0,
    "gradual-magnitude": 0.9,
    "gradual-magnitude-distilled": 0.9,
    "distilled": 0.9,
    "sparsebert": 0.95,
    "prune-once-for-all": 0.85,
    "int8-qat": 0.0,
}
EMBEDDING = {"embedding-distillation": 0.5, "int8-embedding": 0.0}
SHORT = ("*.steps=6", "*.batch_size=16")


def test_each_recipe_that_comes_along_is_read() -> None:
    assert {*LABELLED, *EMBEDDING} <= {*recipe_names()}
    for name in recipe_names():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name", [*LABELLED, *EMBEDDING])
def test_a_recipe_gives_a_checkpoint_that_is_packed_losslessly(
    name, sentence_encoder, labelled, scored_pairs, tmp_path
) -> None:
    data = scored_pairs if name in EMBEDDING else labelled
    # Ranked together, matrices would differ in sparsity.
    uniform = ("prune.pruning.scope=uniform",) if name == "distilled" else ()
    report = train(sentence_encoder, name, data, tmp_path / "out", changes=(*SHORT, *uniform))
    wanted = {**LABELLED, **EMBEDDING}[name]
    quantized = bool(report.stages[-1].quantized)
    assert quantized == (
        "int8" in name or name.startswith(("prune-once", "embedding", "distilled"))
    )
    for zeros in report.layers.values():
        # Rounding to integers makes some zeros of its own, the more the coarser its scales are.
        assert wanted - 0.001 <= zeros <= wanted + (0.04 if quantized else 0.001)
    assert report.metrics.keys() & {"accuracy", "spearman"}
    assert all(stage.steps == 6 and stage.seconds > 0 for stage in report.stages)
    # Nothing of the work is left behind but the result.
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["recipe"] == name and record["seed"] == 0
    # The pooling travels along, but to a model with a head, which would then run as an encoder.
    pooling = tmp_path / "out" / "1_Pooling" / "config.json"
    assert pooling.is_file() == (name in EMBEDDING)
    inspected = sr.inspect(tmp_path / "out").matrices
    assert sum(row.kind == "encoder_linear" for row in inspected) == 12
    values = "auto" if quantized else "fp32"
    packed = sr.convert(tmp_path / "out", tmp_path / "packed", values=values)
    assert all(layer.error == 0 for layer in packed.layers)


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_other_families(family, checkpoints, labelled, tmp_path) -> None:
    # DistilBERT has its own names of matrices and no pooler; RoBERTa a head of two layers.
    report = train(
        checkpoints[family],
        "sparsebert",
        labelled,
        tmp_path / "out",
        changes=("*.steps=4", "*.batch_size=16"),
    )
    assert len(report.layers) == 12
    assert all(zeros == pytest.approx(0.95, abs=0.01) for zeros in report.layers.values())


def test_the_same_seed_gives_the_same_model(checkpoints, labelled, tmp_path) -> None:
    from safetensors.torch import load_file

    changes = ("prune.steps=4",)
    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / name
        torch.manual_seed(hash(name) % 1000)  # what was drawn before does not matter
        train(checkpoints["bert"], "gradual-magnitude", labelled, out, seed=seed, changes=changes)
        models.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert any(not torch.equal(models[0][key], models[2][key]) for key in models[0])


def test_training_learns(checkpoints, labelled, tmp_path) -> None:
    # A third would be chance: the label is which words occur.
    report = train(
        checkpoints["bert"],
        "dense",
        labelled,
        tmp_path / "out",
        changes=("teacher.epochs=25", "teacher.learning_rate=3e-3", "teacher.batch_size=16"),
    )
    assert report.metrics["accuracy"] > 0.7
    losses = [entry["loss"] for entry in report.stages[0].history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_given_teacher_is_not_trained(checkpoints, labelled, tmp_path) -> None:
    changes = ("*.steps=2",)
    train(checkpoints["bert"], "dense", labelled, tmp_path / "dense", changes=changes)
    report = train(
        checkpoints["bert"],
        "gradual-magnitude-distilled",
        labelled,
        tmp_path / "out",
        changes=changes,
        given={"teacher": tmp_path / "dense"},
    )
    assert [stage.steps for stage in report.stages] == [0, 2]


def test_what_a_given_model_alone_needed_is_not_trained(checkpoints, labelled, tmp_path) -> None:
    from safetensors.torch import load_file

    recipe = load_recipe("prune-once-for-all", SHORT)
    model = checkpoints["bert"]
    train(model, replace(recipe, stages=recipe.stages[:4]), labelled, tmp_path / "transfer")
    train(model, replace(recipe, stages=recipe.stages[2:3]), labelled, tmp_path / "teacher")
    given = {name: tmp_path / name for name in ("teacher", "transfer")}
    report = train(model, recipe, labelled, tmp_path / "out", given=given)
    steps = {stage.name: stage.steps for stage in report.stages}
    assert steps == {"teacher": 0, "transfer": 0, "quantize": 6}
    # The very model that all stages in one run give.
    train(model, recipe, labelled, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, whole[name]), name


def test_stages_left_where_models_are_given() -> None:
    recipe = load_recipe("prune-once-for-all")

    def left(*given: str) -> list[str]:
        return [stage.name for stage in recipe.needed(given)]

    every = ["teacher-preparation", "prune", "teacher", "transfer", "quantize"]
    assert left() == left("teacher-preparation") == left("teacher") == every
    assert left("prune") == every[1:]
    # Its teacher teaches the last stage too; said or not, a model that is given stays.
    assert left("transfer") == every[2:]
    assert left("transfer", "prune") == every[1:]


def test_a_stage_that_nothing_needs_is_trained_as_ever() -> None:
    plain = load_recipe("dense").stages[0]
    first, second, third = (replace(plain, name=name) for name in ("a", "b", "c"))
    recipe = Recipe("own", (first, replace(second, start="model"), replace(third, start="b")))
    assert [stage.name for stage in recipe.needed(["b"])] == ["a", "b", "c"]


def test_an_interrupted_recipe_goes_on(checkpoints, labelled, tmp_path, monkeypatch) -> None:
    from safetensors.torch import load_file

    from sparse_runtime.compress.training.pruners import MagnitudePruner

    arguments = {"changes": ("*.steps=6",), "save_every": 2}
    name = "gradual-magnitude-distilled"
    train(checkpoints["bert"], name, labelled, tmp_path / "whole", **arguments)

    update = MagnitudePruner.end_step

    def interrupted(self: MagnitudePruner, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        update(self, step)

    out = tmp_path / "parts"
    monkeypatch.setattr(MagnitudePruner, "end_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoints["bert"], name, labelled, out, **arguments)
    monkeypatch.setattr(MagnitudePruner, "end_step", update)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"go on with resume=True \(--resume\)"):
        train(checkpoints["bert"], name, labelled, out, **arguments)
    with pytest.raises(ValueError, match="begun with other seed"):
        train(checkpoints["bert"], name, labelled, out, seed=1, resume=True, **arguments)
    report = train(checkpoints["bert"], name, labelled, out, resume=True, **arguments)
    whole, parts = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert [stage.steps for stage in report.stages] == [6, 6]


def test_refusals(checkpoints, labelled, scored_pairs, tmp_path) -> None:
    model, out = checkpoints["bert"], tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        train(model, "dense", labelled, out)
    out.rmdir()
    with pytest.raises(ValueError, match="did you mean 'sparsebert'"):
        train(model, "sparsbert", labelled, out)
    with pytest.raises(ValueError, match="has no classes"):
        train(model, "dense", scored_pairs, out, changes=SHORT)
    assert not list(tmp_path.iterdir()), "nothing to go on from is left behind"
    with pytest.raises(ValueError, match="pooling auto"):
        train(model, "int8-embedding", scored_pairs, tmp_path / "other")
    with pytest.raises(ValueError, match="a model can be given for none"):
        train(model, "dense", labelled, tmp_path / "third", given={"teacher": model})


def test_scores_of_pairs_are_learnt_by_one_output(checkpoints, scored_pairs, tmp_path) -> None:
    assert scored_pairs.test is not None
    data = replace(scored_pairs, train=scored_pairs.test)
    stage = {"task": "regression", "epochs": 60, "learning_rate": 2e-3, "batch_size": 10}
    distil = {"name": "b", **stage, "epochs": 1, "teacher": "a", "distillation": {"logits": 1}}
    recipe = {"name": "own", "stages": [{"name": "a", **stage}, distil]}
    report = train(checkpoints["bert"], recipe, data, tmp_path / "out")
    assert report.metrics.keys() == {"spearman", "pearson", "loss"}
    assert report.metrics["spearman"] > 0.5


def test_a_pruned_sentence_encoder_stays_close_to_its_teacher(
    sentence_encoder, scored_pairs, tmp_path
) -> None:
    changes = ("prune.pruning.structure=unstructured@0.5", "quantize.steps=2")
    losses = []
    for steps in (4, 120):
        report = train(
            sentence_encoder,
            "embedding-distillation",
            scored_pairs,
            tmp_path / str(steps),
            changes=(*changes, f"prune.steps={steps}", "*.learning_rate=2e-3"),
            log_every=4,
        )
        history = [entry for entry in report.stages[0].history if "loss_embedding" in entry]
        losses.append(history[-1]["loss_embedding"])
    assert losses[1] < losses[0] / 2
