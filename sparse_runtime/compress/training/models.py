"""Models of a task, from a checkpoint or from what an earlier stage gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checkpoints import kind_of
from .recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .data import Data

_POOLING_FILE = Path("1_Pooling") / "config.json"
_POOLING_KEYS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def load_model(source: str | Path, task: Task, data: Data, dropout: float | None = None) -> Any:
    """A model of the task in float32, its head new where the checkpoint has none.

    Args:
        source: directory or hub id.
        task: what head it needs.
        data: names the classes.
        dropout: of hidden states and attention; None leaves the checkpoint's.

    Returns:
        The model; its attribute ``new_parameters`` lists what the checkpoint did not hold.

    Raises:
        ValueError: the checkpoint lacks more than a head or pooler.
    """
    from transformers import AutoConfig

    settings: dict[str, Any] = {}
    if task == "classification":
        if data.label_names is None:
            raise ValueError("task classification: the data has no classes; give labelled data")
        names = data.label_names
        settings = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
    elif task == "regression":
        settings = {"num_labels": 1, "problem_type": "regression"}
    config = AutoConfig.from_pretrained(source, **settings)
    if dropout is not None:
        _set_dropout(config, dropout)
    model, report = _model_class(task).from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True, **_sizes(settings)
    )
    model.new_parameters = sorted(_missing(report))
    _refuse_new(model, model.new_parameters, str(source))
    return model


def continue_from(model: nn.Module, earlier: nn.Module) -> None:
    """Copy what two models of one architecture share: the encoder always, a head where it is alike.

    Args:
        model: takes the weights; loaded from the checkpoint that the recipe began with, so that
            what the earlier task did not train (a pooler) is the checkpoint's own.
        earlier: what an earlier stage gave.

    Raises:
        ValueError: the encoder of one lacks a tensor of the other.
    """
    theirs = _by_place(earlier)
    ours = _by_place(model)
    copied = []
    for place, tensor in ours.items():
        other = theirs.get(place)
        if other is not None and other.shape == tensor.shape:
            with torch.no_grad():
                tensor.copy_(other)
            copied.append(place)
        elif kind_of(place, tuple(tensor.shape)) != "head":
            raise ValueError(
                f"{place}: expected a tensor {list(tensor.shape)} in the model of the earlier "
                f"stage, got {'none' if other is None else list(other.shape)}; both stages need "
                "one architecture"
            )
    model.new_parameters = sorted(set(getattr(model, "new_parameters", ())) - set(copied))  # type: ignore[assignment]


def sentence_pooling(source: str | Path, wanted: str) -> str:
    """How a checkpoint makes one vector of a text.

    Args:
        source: a directory of sentence-transformers, for "auto".
        wanted: "mean", "cls" or "auto".

    Raises:
        ValueError: "auto", and the checkpoint does not say, or says what is not supported.
    """
    if wanted != "auto":
        return wanted
    path = Path(source) / _POOLING_FILE
    if not path.is_file():
        raise ValueError(
            f"pooling auto: {source} has no {_POOLING_FILE}; say pooling: mean or pooling: cls in "
            "the recipe, or --pooling"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if "pooling_mode" in config:
        word = config["pooling_mode"]
        modes = [key for key, value in _POOLING_KEYS.items() if value == word]
    if len(modes) != 1 or modes[0] not in _POOLING_KEYS:
        raise ValueError(
            f"pooling auto: {path} names {modes}; supported are {list(_POOLING_KEYS)}, one of them"
        )
    return _POOLING_KEYS[modes[0]]


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def _model_class(task: Task) -> Any:
    import transformers

    return {
        "classification": transformers.AutoModelForSequenceClassification,
        "regression": transformers.AutoModelForSequenceClassification,
        "masked_lm": transformers.AutoModelForMaskedLM,
        "embedding": transformers.AutoModel,
    }[task]


def _sizes(settings: dict[str, Any]) -> dict[str, Any]:
    # A head of another task may be in the checkpoint: it is replaced, and reported as new.
    return {"ignore_mismatched_sizes": True} if settings else {}


def _missing(report: dict[str, Any]) -> set[str]:
    mismatched = {
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    }
    return set(report["missing_keys"]) | mismatched


def _refuse_new(model: nn.Module, names: list[str], source: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in names:
        inside = {"pooler", "classifier", "pre_classifier", "cls", "lm_head", "score"}
        head = kind_of(name, shapes.get(name, ())) == "head" or inside & set(name.split("."))
        if not head and not name.startswith(("vocab_", "cls.", "lm_head.", "predictions.")):
            raise ValueError(
                f"{source}: the checkpoint lacks {name}, which is no part of a head; it would be "
                "random: give a complete checkpoint"
            )


def _set_dropout(config: Any, value: float) -> None:
    # BERT and RoBERTa; DistilBERT. Heads keep theirs out of these unless they name their own.
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    for name in names:
        if hasattr(config, name):
            setattr(config, name, value)


def _by_place(model: nn.Module) -> dict[str, torch.Tensor]:
    """State by name without the base model's prefix, which some heads add and bare encoders lack."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
