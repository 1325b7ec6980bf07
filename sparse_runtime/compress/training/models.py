"""Models of a task, from a checkpoint or from what an earlier stage gave."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checkpoints import locate
from ..oneshot.calibrate import positions
from ..oneshot.loading import load_tokenizer as tokenizer_beside
from .classes import checkpoint_classes, fit_head
from .recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .data import Data

_POOLING_FILE = Path("1_Pooling") / "config.json"
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
"""Of hidden states and attention, in BERT and RoBERTa and in DistilBERT."""
_HEAD = re.compile(r"\w*classifier|cls|lm_head|pooler|score|vocab_\w+|generator_\w+")
_POOLING_KEYS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def load_model(source: str | Path, task: Task, data: Data, dropout: float | None = None) -> Any:
    """A model of the task in float32, its head new where the checkpoint has none.

    Args:
        source: directory or hub id.
        task: what head it needs.
        data: names the classes.
        dropout: of hidden states and attention while training; None leaves the checkpoint's.

    Returns:
        The model, its classes in the data's order whatever the checkpoint's is; its attribute
        ``new_parameters`` lists what the checkpoint did not hold, or held for other classes.

    Raises:
        ValueError: the checkpoint lacks more than a head or pooler.
    """
    from transformers import AutoConfig

    settings: dict[str, Any] = {}
    named = checkpoint_classes(AutoConfig.from_pretrained(source))
    if task == "classification":
        if data.label_names is None:
            raise ValueError(_no_classes(data))
        names = data.label_names
        if len(names) < 2:
            raise ValueError(
                f"task classification: expected two classes or more, and all rows have {names[0]!r}"
            )
        settings = {
            "num_labels": len(names),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
    elif task == "regression":
        settings = {"num_labels": 1, "problem_type": "regression"}
    config = AutoConfig.from_pretrained(source, **settings)
    usual = {name: getattr(config, name) for name in _DROPOUTS if hasattr(config, name)}
    for name in usual if dropout is not None else ():
        setattr(config, name, dropout)
    model, report = _model_class(task).from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        # The fused attention's backward pass takes longer on a CPU, in bfloat16, than all the rest
        # of a step together; short texts gain nothing from it elsewhere.
        attn_implementation="eager",
        **_sizes(settings),
    )
    for name, value in usual.items():
        # Modules have taken theirs; what is written later is the checkpoint's own.
        setattr(model.config, name, value)
    new = _missing(report)
    if task == "classification" and not any(_of_head(n) and "pooler" not in n for n in new):
        new |= set(fit_head(model, named, names))
    model.new_parameters = sorted(new)
    _refuse_new(model.new_parameters, str(source))
    if task == "embedding" and any("pooler" in name for name in model.new_parameters):
        # Sentence vectors do not go through it, and a random one must not be written.
        model.pooler, model.new_parameters = None, []
    return model


def _no_classes(data: Data) -> str:
    found = f" (its columns: {', '.join(data.columns)})" if data.columns else ""
    return (
        f"task classification: the data has no classes{found}; expected a column label or "
        "category, or another task: regression for scores, embedding or masked_lm for texts alone"
    )


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
        elif not _of_head(place):
            raise ValueError(
                f"{place}: expected a tensor {list(tensor.shape)} in the model of the earlier "
                f"stage, got {'none' if other is None else list(other.shape)}; both stages need "
                "one architecture"
            )
    trained = set(copied) - set(getattr(earlier, "new_parameters", ()))
    model.new_parameters = sorted(set(getattr(model, "new_parameters", ())) - trained)  # type: ignore[assignment]


def sentence_pooling(source: str | Path, wanted: str) -> str:
    """How a checkpoint makes one vector of a text.

    Args:
        source: a directory of sentence-transformers or a hub id, for "auto".
        wanted: "mean", "cls" or "auto".

    Raises:
        ValueError: "auto", and the checkpoint does not say, or says what is not supported.
    """
    if wanted != "auto":
        return wanted
    path = locate(source) / _POOLING_FILE
    if not path.is_file():
        raise ValueError(
            f"pooling auto: {source} has no {_POOLING_FILE}; say pooling: mean or pooling: cls in "
            "the recipe, or --pooling mean, --pooling cls"
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
    """The tokenizer of a checkpoint; its limit is no longer than the model's positions.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoConfig

    directory = locate(source)
    tokenizer = tokenizer_beside(directory)
    reach = positions(AutoConfig.from_pretrained(directory))
    tokenizer.model_max_length = min(tokenizer.model_max_length, reach)
    return tokenizer


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


def _refuse_new(names: Iterable[str], source: str) -> None:
    for name in names:
        if not _of_head(name):
            raise ValueError(
                f"{source}: the checkpoint lacks {name}, which is no part of a head; it would be "
                "random: give a complete checkpoint"
            )


def _of_head(name: str) -> bool:
    """Whether a tensor belongs to a head or pooler, norms and biases in it included."""
    return any(_HEAD.fullmatch(part) for part in name.split("."))


def _by_place(model: nn.Module) -> dict[str, torch.Tensor]:
    """State by name, without the prefix that the encoder has under a head and lacks alone."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
