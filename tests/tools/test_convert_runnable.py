"""convert() writes what loads, or says before that it would not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from sparse_runtime import SparseModel
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.tools.convert import convert

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
IDS = torch.tensor([[2, 7, 11, 3]])


def save(model: PreTrainedModel, directory: Path, before: str = "", **changes: Any) -> Path:
    """``changes`` of config.json, ``...`` to leave out; ``before`` each name."""
    model.eval().save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    weights = directory / "model.safetensors"
    save_file({f"{before}{k}": v for k, v in load_file(weights).items()}, weights)
    return directory


@pytest.fixture
def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))


def test_the_head_of_pre_training_predicts_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**SIZES))
    convert(save(model, tmp_path / "source"), tmp_path / "packed", values="fp32", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed", backend="reference")
    with torch.no_grad():
        expected = model(IDS).prediction_logits
    assert packed.task == "masked_lm"
    assert (packed(IDS).logits - expected).abs().max() < 1e-5
    assert "cls.seq_relationship.weight" in packed.unused_tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"missing: bert\.encoder\.layer\.2\."),
        ({"vocab_size": 40}, r"word_embeddings\.weight expected \[40, 32\], got \[50, 32\]"),
        ({"id2label": {"0": "a"}, "label2id": {"a": 0}}, r"classifier\.weight expected \[1, 32\]"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
        ({"architectures": ["BertForMaskedLM"]}, r"missing: cls\.predictions"),
        ({"model_type": 7}, "model_type: expected a name, got 7; take the config.json"),
    ],
)
def test_what_could_not_load_is_not_written(
    changes: dict[str, Any],
    message: str,
    classifier: BertForSequenceClassification,
    tmp_path: Path,
) -> None:
    source = save(classifier, tmp_path / "source", **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()


def test_other_heads_are_refused(tmp_path: Path) -> None:
    source = save(BertForMultipleChoice(BertConfig(**SIZES)), tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"MultipleChoice.*'BertModel' in config\.json"):
        convert(source, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()


def test_a_family_that_only_transformers_runs_is_noted(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    source = save(BertModel(BertConfig(**SIZES)), tmp_path / "source", model_type="ernie")
    report = convert(source, tmp_path / "packed", progress=False)
    assert "does not run 'ernie' models" in report.notes[0]
    assert report.notes[0] in caplog.text


@pytest.mark.parametrize("before", ["model.", "student.", "0.auto_model."])
def test_what_frameworks_put_before_all_names_is_taken_away(
    before: str, classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    source = save(classifier, tmp_path / "source", before)
    weights = source / "model.safetensors"
    teacher = {"teachers.0.teacher.bert.encoder.layer.0.output.dense.weight": torch.ones(32, 48)}
    save_file(load_file(weights) | teacher, weights)
    report = convert(source, tmp_path / "packed", values="fp32", progress=False)
    assert any(step.startswith(f"names without {before!r}") for step in report.steps)
    assert report.dropped == dict.fromkeys(teacher, "the teacher's")
    packed = SparseModel.from_pretrained(tmp_path / "packed", backend="reference")
    with torch.no_grad():
        assert (packed(IDS).logits - classifier(IDS).logits).abs().max() < 1e-5


def test_names_of_which_some_lack_the_wrapper_stay(
    classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    source = save(classifier, tmp_path / "source", "model.")
    weights = source / "model.safetensors"
    tensors = load_file(weights)
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors.pop(f"model.{name}")
    save_file(tensors, weights)
    assert f"model.{name.replace('.0.', '.1.')}" in open_checkpoint(source).tensors
    with pytest.raises(CheckpointError, match="of no known part: model"):
        convert(source, tmp_path / "packed", progress=False)


def test_a_family_that_config_json_lacks_is_read_off_the_names(
    classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    report = convert(
        save(classifier, tmp_path / "source", model_type=...), tmp_path / "packed", progress=False
    )
    assert "model_type = bert, as layers are named: config.json has none" in report.steps
    assert SparseModel.from_pretrained(tmp_path / "packed").config.model_type == "bert"
    base = save(classifier.bert, tmp_path / "base", model_type=...)
    with pytest.raises(CheckpointError, match="expected a model_type"):
        convert(base, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"calibration": (text for text in ["a"])},
            r"calibration: .*got generator; list\(",
        ),
        ({"calibration": "text"}, "calibration: expected a list of texts, got str"),
        ({"calibration": [1, 2]}, "calibration: expected a list of texts, got one with 1"),
        ({"finalise": {1: 2}}, "finalise: expected names of options as keys, got 1"),
        ({"finalise": "threshold=0.1"}, "finalise: expected answers by name, .* got str"),
    ],
)
def test_arguments_of_another_type(arguments: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        convert(tmp_path, tmp_path / "packed", **arguments)


def test_blocks_that_are_too_large_to_prune_a_share_are_noted(
    classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    source = save(classifier, tmp_path / "source")
    report = convert(source, tmp_path / "a", prune="block:32x32@0.5", progress=False)
    assert report.notes[0].startswith("prune 'block:32x32@0.5' removed nothing of bert.encoder")
    assert "attention.self.query" in report.notes[0]
    assert not convert(source, tmp_path / "b", prune="block:8x8@0.5", progress=False).notes
