"""A checkpoint's classes meet the data's by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparse_runtime.compress.training.models import load_model
from sparse_runtime.compress.training.run import train

SHORT = ("*.steps=1", "*.batch_size=8", "*.learning_rate=1e-9")


@pytest.fixture(scope="module")
def classifier(checkpoints, tmp_path_factory) -> Path:
    """Three classes in another order than the data's a, b, c."""
    return with_classes(checkpoints["bert"], tmp_path_factory.mktemp("head") / "m", ("c", "a", "b"))


def with_classes(encoder: Path, folder: Path, names: tuple[str, ...]) -> Path:
    import transformers

    shutil.copytree(encoder, folder)
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    torch.nn.init.normal_(model.classifier.weight)
    model.classifier.bias.data = torch.arange(len(names)).float()
    model.save_pretrained(folder)
    return folder


def renamed(folder: Path, out: Path, names: tuple[str, ...]) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_rows_follow_their_names(classifier, labelled) -> None:
    model = load_model(classifier, "classification", labelled)
    # In the file c, a, b have the biases 0, 1, 2.
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.classifier.bias.tolist() == [1, 2, 0]
    assert model.new_parameters == []


def test_the_result_keeps_the_order_of_its_checkpoint(classifier, labelled, tmp_path) -> None:
    from safetensors.torch import load_file

    report = train(classifier, "dense", labelled, tmp_path / "out", changes=SHORT)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "c", "1": "a", "2": "b"}
    head = load_file(tmp_path / "out" / "model.safetensors")["classifier.bias"]
    assert head.tolist() == pytest.approx([0, 1, 2], abs=1e-3)
    assert report.stages[-1].new_parameters == ()


@pytest.mark.parametrize("names", [("x", "y", "z"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_a_head_of_other_classes_is_new(names, classifier, labelled, tmp_path) -> None:
    other = renamed(classifier, tmp_path / "other", names)
    model = load_model(other, "classification", labelled)
    assert model.new_parameters == ["classifier.bias", "classifier.weight"]
    assert model.classifier.bias.tolist() == [0, 0, 0]
    with pytest.raises(
        ValueError, match=r"stage 'prune', teacher: 'teacher' has no head .*id2label"
    ):
        train(
            classifier,
            "gradual-magnitude-distilled",
            labelled,
            tmp_path / "out",
            changes=SHORT,
            given={"teacher": other},
        )


def test_unnamed_classes_are_the_numbers(classifier, labelled, tmp_path) -> None:
    from dataclasses import replace

    numbers = replace(labelled, label_names=("0", "1", "2"))
    unnamed = renamed(classifier, tmp_path / "m", ("LABEL_0", "LABEL_1", "LABEL_2"))
    model = load_model(unnamed, "classification", numbers)
    assert model.classifier.bias.tolist() == [0, 1, 2] and model.new_parameters == []


def test_a_teacher_is_asked_in_the_order_of_the_student(classifier, labelled, tmp_path) -> None:
    # Student c, a, b; teacher b, c, a with the same meaning: the labels' own loss is left out, so
    # equal logits leave no gradient at all.
    from safetensors.torch import load_file, save_file

    teacher = renamed(classifier, tmp_path / "teacher", ("b", "c", "a"))
    tensors = load_file(teacher / "model.safetensors")
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = tensors[key][[2, 0, 1]].clone()
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    stage = {"task": "classification", "steps": 1, "batch_size": 90, "dropout": 0}
    distil = {**stage, "teacher": "t", "start": "model", "distillation": {"task": 0, "hidden": 0}}
    distil["distillation"]["logits"] = 1
    recipe = {"name": "own", "stages": [{"name": "t", **stage}, {"name": "s", **distil}]}
    report = train(
        classifier, recipe, labelled, tmp_path / "out", given={"t": teacher}, log_every=1
    )
    norms = [e["grad_norm"] for e in report.stages[-1].history if "grad_norm" in e]
    assert norms and norms[0] < 1e-5
