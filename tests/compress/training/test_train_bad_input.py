"""Bad recipes are refused with stage and key before a step is made or a file written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from sparse_runtime.compress.training.data import Data, Part
from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.recipe import Recipe, Stage
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.sections import Pruning

STAGES: list[dict[str, Any]] = [
    {"name": "teacher", "task": "classification", "steps": 2},
    {
        "name": "prune",
        "task": "classification",
        "steps": 2,
        "start": "teacher",
        "teacher": "teacher",
        "pruning": {"method": "magnitude", "structure": "2:4"},
        "distillation": {"task": 0, "logits": 1},
        "quantization": {"weights": "int8", "scales": "row", "activations": "dynamic"},
    },
]
NAN = float("nan")
BANKS = {"task": 1, "contrastive": {}}
GLOBAL = {"scope": "global", "structure": "unstructured@0.9"}
# What nothing would make right: (section, its keys, place in the message, what is expected).
READ: list[tuple[str, dict[str, Any], str, str]] = [
    ("pruning", {"structure": "banana"}, "pruning.structure: 'banana'", "for example 2:4"),
    ("pruning", {"structure": "unstructured@1.5"}, "pruning.structure", "0 to below 1"),
    ("pruning", {"structure": "4:2"}, "pruning.structure", "N below M"),
    ("pruning", {"structure": None}, "pruning.structure", "needs a structure"),
    ("pruning", {"per": {"query": "banana"}}, "pruning.per.query: 'banana'", "for example 2:4"),
    ("pruning", {"per": {"(": "2:4"}}, "pruning.per.(", "a regular expression"),
    ("pruning", {"include": "("}, "pruning.include: '('", "a regular expression"),
    ("pruning", {"exclude": "["}, "pruning.exclude: '['", "a regular expression"),
    ("pruning", {"floor": 7}, "pruning.floor", "at most 1, got 7"),
    ("pruning", {"method": "lock"}, "pruning.structure", "lock takes no structure"),
    ("pruning", {"method": "structured"}, "pruning.structure", "takes no structure"),
    ("pruning", {"method": "group-lasso"}, "pruning.structure: '2:4'", "block:RxC@SPARSITY"),
    (
        "pruning",
        {"method": "obert", "structure": "block:4x4@0.8"},
        "pruning.fisher_block: 50",
        "for example 32",
    ),
    ("pruning", {"method": "movement", "scope": "global"}, "pruning.scope", "say uniform"),
    ("pruning", {"method": "movement", "score_learning_rate": 0}, "score_learning_rate", "above 0"),
    ("pruning", {"method": "admm", "scales": "bogus"}, "pruning.scales: 'bogus'", "chunk:32"),
    ("pruning", {"method": "admm", "values": "int9"}, "pruning.values", "int8, int4 or null"),
    ("pruning", {"schedule": {"begin": 0.9}}, "pruning.schedule", "0 <= begin <= end"),
    ("distillation", {"temperature": 0}, "distillation.temperature", "above 0"),
    ("distillation", {"logits": -1}, "distillation.logits", "0 or more"),
    ("distillation", {"hidden": NAN}, "distillation.hidden", "0 or more"),
    ("distillation", {"logits": 0}, "distillation", "above 0"),
    ("distillation", {"embedding": 1}, "distillation.embedding", "use logits, hidden"),
    ("distillation", {"contrastive": {"foo": 1}}, "distillation.contrastive", "known are instance"),
    (
        "distillation",
        {"contrastive": {"temperature": 0}},
        "distillation.contrastive.temperature",
        "above 0, got 0",
    ),
    (
        "distillation",
        {"contrastive": {"label_weight": NAN}},
        "distillation.contrastive.label_weight",
        "0 or more, got nan",
    ),
    (
        "distillation",
        {"contrastive": {"pooling": "max"}},
        "distillation.contrastive.pooling: expected one of",
        "got max",
    ),
    (
        "distillation",
        {"logits": 0, "contrastive": {"instance_weight": 0, "label_weight": 0}},
        "distillation: every weight of the loss is 0",
        "one above 0",
    ),
    ("", {"augment": {"copies": 0}}, "prune', augment.copies: expected", "1 or more, got 0"),
    ("quantization", {"weights": "int9"}, "quantization.weights: 'int9'", "int8 or int4"),
    ("quantization", {"weights": "fp16"}, "quantization.weights: 'fp16'", "int8 or int4"),
    ("quantization", {"scales": "bogus"}, "quantization.scales: 'bogus'", "chunk:R or group:G"),
    ("quantization", {"per": {"query": "int3"}}, "quantization.per.query", "int8 or int4"),
    ("quantization", {"include": "("}, "quantization.include: '('", "a regular expression"),
    ("quantization", {"outputs": ["query"]}, "quantization.outputs", "activations static"),
    ("", {"freeze": ["("]}, "freeze[0]: '('", "a regular expression"),
    ("", {"max_length": 0}, "max_length", "1 or more"),
    ("", {"batch_size": 0}, "batch_size", "1 or more"),
    ("", {"steps": None, "epochs": NAN}, "epochs", "above 0"),
    ("", {"lr_schedule": "rewinding", "pruning": None}, "lr_schedule", "needs a pruning section"),
    ("", {"lr_schedule": "sawtooth", "warmup": 0.1}, "warmup", "lr_schedule: linear"),
]
# What the tiny model and its data tell.
ON_THE_MODEL: list[tuple[str, dict[str, Any], str, str]] = [
    ("", {"freeze": ["nosuch"]}, "freeze[0]: 'nosuch' fits no parameter", "found in a name"),
    ("", {"freeze": ["."]}, "freeze", "leaves no parameter to train"),
    ("pruning", {"include": "nosuch"}, "pruning: include='nosuch'", "no linear layer is left"),
    ("pruning", {"exclude": "."}, "pruning: include=None, exclude='.'", "no linear layer is left"),
    ("pruning", {"per": {"nosuch": "2:4"}}, "pruning.per: 'nosuch'", "fits none"),
    ("pruning", {"per": {".": None}}, "pruning.per", "a pattern for some"),
    ("pruning", {"structure": "block:64x64@0.5"}, "pruning.structure", "no larger than it"),
    (
        "pruning",
        {"scope": "global", "per": {"key": "1:4"}},
        "pruning.scope",
        "for one pattern, got 1:4, 2:4; say uniform",
    ),
    ("pruning", {**GLOBAL, "floor": 0.5}, "pruning.floor", "a smaller share"),
    (
        "pruning",
        {"method": "structured", "structure": None, "exclude": "query"},
        "pruning.exclude",
        "all six matrices",
    ),
    ("pruning", {"method": "structured", "structure": None}, "pruning.ratios", "fewer ratios"),
    ("quantization", {"include": "nosuch"}, "quantization: include=", "no linear layer is left"),
    ("quantization", {"per": {"nosuch": "int4"}}, "quantization.per: 'nosuch'", "fits none"),
    (
        "quantization",
        {"activations": "static", "outputs": ["nosuch"]},
        "quantization.outputs: 'nosuch'",
        "fits none",
    ),
    (
        "quantization",
        {"activations": "static", "start": 0.9, "freeze": 1},
        "quantization.start",
        "one of the stage's 2 steps to train with quantized inputs, got 0.9",
    ),
    (
        "pruning",
        {"method": "obert", "fisher_block": 100_000},
        "pruning.fisher_block",
        "at most the 2048 weights of the largest matrix",
    ),
    ("", {"max_length": 2}, "max_length: expected 3 or more", "2 tokens of its own, got 2"),
    ("", {"task": "masked_lm"}, "teacher: 'teacher'", "a stage of that task"),
    ("", {"task": "regression"}, "task: regression needs scores", "name the column score"),
    (
        "",
        {"freeze": ["layer.0."], "pruning": {"method": "obert", "structure": "unstructured@0.5"}},
        "freeze: fits bert.encoder.layer.0.",
        "obert chooses by; leave it out of freeze",
    ),
    (
        "",
        {
            "freeze": ["pooler"],
            "pruning": {"method": "obert", "structure": "unstructured@0.5", "pooler": True},
        },
        "freeze: fits bert.pooler.dense.weight",
        "leave it out of freeze",
    ),
    (
        "",
        {"freeze": ["layer.1.output"], "pruning": {"method": "structured", "ratios": [0.5]}},
        "freeze: fits bert.encoder.layer.1.output.dense.weight",
        "leave it out of freeze",
    ),
    ("", {"teacher": "model"}, "teacher: 'model' has no head", "id2label"),
    (
        "",
        {
            "task": "embedding",
            "distillation": {"embedding": 1, "contrastive": {}},
        },
        "distillation.contrastive.label_weight",
        "expected 0",
    ),
    (
        "",
        {
            "augment": {"neighbours": 1000},
        },
        "augment.neighbours",
        "fewer than the texts have words",
    ),
]


def recipe(section: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The two stages, the second with other keys."""
    stages = copy.deepcopy(STAGES)
    target = stages[1][section] if section else stages[1]
    target.update(keys)
    return {"name": "own", "pooling": "mean", "stages": stages}


@pytest.fixture
def never_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("it trains"))


def refused(made: Any, model: Path, data: Data, folder: Path, *told: str, **more: Any) -> None:
    with pytest.raises(ValueError) as caught:
        train(model, made, data, folder / "out", **more)
    for text in told:
        assert text in str(caught.value)
    assert not (folder / "out").exists() and not (folder / "out.training").exists()


@pytest.mark.parametrize(("section", "keys", "place", "expected"), READ)
def test_what_a_recipe_says_wrong(section, keys, place, expected) -> None:
    parse(recipe("", {}))
    with pytest.raises(ValueError) as caught:
        parse(recipe(section, keys))
    assert str(caught.value).startswith("recipe: stage 'prune', ")
    assert place in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize(("section", "keys", "place", "expected"), [READ[0], *ON_THE_MODEL])
def test_what_the_model_does_not_allow(
    section, keys, place, expected, checkpoints, labelled, tmp_path, never_trains
) -> None:
    made = recipe(section, keys)
    refused(made, checkpoints["bert"], labelled, tmp_path, "stage 'prune'", place, expected)


def test_banks_behind_a_pooler_that_is_not_there(
    checkpoints, labelled, tmp_path, never_trains
) -> None:
    made = recipe("distillation", {"contrastive": {"pooling": "pooler"}})
    told = ("stage 'prune', distillation.contrastive.pooling", "mean or cls")
    refused(made, checkpoints["distilbert"], labelled, tmp_path, *told)


def test_data_that_a_later_stage_cannot_use(checkpoints, tmp_path, never_trains) -> None:
    plain = Data(Part(("w1 w2", "w3 w4")))
    stages = [
        {"name": "warm", "task": "masked_lm", "steps": 1},
        {"name": "tune", "task": "regression", "steps": 1},
    ]
    told = ("stage 'tune', task: regression needs labels", "give labelled data")
    refused({"name": "own", "stages": stages}, checkpoints["bert"], plain, tmp_path, *told)


def test_a_given_teacher_of_another_size(checkpoints, labelled, tmp_path, never_trains) -> None:
    import shutil

    import transformers

    small = tmp_path / "small"
    shutil.copytree(checkpoints["bert"], small)
    names = {i: name for i, name in enumerate(labelled.label_names)}
    config = transformers.BertConfig.from_pretrained(small, num_hidden_layers=1, id2label=names)
    transformers.BertForSequenceClassification(config).save_pretrained(small)
    made = recipe("", {"start": "model", "distillation": {"squarehead": 1}})
    told = ("stage 'prune', distillation.squarehead", "num_hidden_layers 2, got 1")
    given = {"teacher": small}
    refused(made, checkpoints["bert"], labelled, tmp_path, *told, given=given)
    made = recipe("", {"distillation": {"logits": 1}})
    told = ("stage 'prune', start: 'teacher'", "one architecture")
    refused(made, checkpoints["bert"], labelled, tmp_path, *told, given=given)


def test_recipes_built_in_python(checkpoints, labelled, tmp_path, never_trains) -> None:
    def made(pruning: Pruning) -> Recipe:
        return Recipe("own", (Stage("prune", "classification", steps=1, pruning=pruning),))

    told = ("stage 'prune', pruning.method", "expected one of admm")
    refused(made(Pruning("magnitud", "2:4")), checkpoints["bert"], labelled, tmp_path, *told)
    told = ("stage 'prune', pruning.options", "expected MagnitudeOptions")
    refused(made(Pruning("magnitude", "2:4")), checkpoints["bert"], labelled, tmp_path, *told)


@pytest.mark.parametrize("name", ["save_every", "log_every"])
def test_a_pace_of_no_steps(name, checkpoints, labelled, tmp_path, never_trains) -> None:
    told = (f"{name} 0: expected 1 step or more",)
    refused("dense", checkpoints["bert"], labelled, tmp_path, *told, **{name: 0})
