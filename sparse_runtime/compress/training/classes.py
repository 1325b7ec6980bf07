"""Classes of a checkpoint's head against those of the data: by name, never by place alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import Data, Part


def checkpoint_classes(config: Any) -> tuple[str, ...]:
    """Names of the classes in the order of the head's rows; of transformers "LABEL_0" and so on
    where the checkpoint names none.
    """
    return tuple(str(config.id2label[number]) for number in sorted(config.id2label))


def in_checkpoint_order(data: Data, source: str | Path) -> Data:
    """The data with its classes numbered as the checkpoint does, where the names are the same."""
    from transformers import AutoConfig

    ours = data.label_names
    if ours is None:
        return data
    theirs = checkpoint_classes(AutoConfig.from_pretrained(source))
    if theirs == ours or set(theirs) != set(ours) or len(theirs) != len(ours):
        return data
    number = [theirs.index(name) for name in ours]

    def renumbered(part: Part | None) -> Part | None:
        if part is None or part.labels is None:
            return part
        return replace(part, labels=tuple(number[int(label)] for label in part.labels))

    train = renumbered(data.train)
    assert train is not None
    return replace(
        data,
        train=train,
        dev=renumbered(data.dev),
        test=renumbered(data.test),
        label_names=theirs,
    )


def fit_head(model: Any, theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[str]:
    """Give the rows of a head that a checkpoint holds the order of the data's classes.

    A head of other classes is made anew; so is one of unnamed classes ("LABEL_0"), for nothing says
    which is which, unless the data's are the numbers from 0.

    Args:
        model: for as many classes as the data has.
        theirs: classes of the checkpoint, row by row.
        ours: classes of the data, by number.

    Returns:
        The parameters that are made anew.

    Raises:
        ValueError: the model ends in no linear layer with a row a class.
    """
    count = len(ours)
    if theirs == ours or (
        theirs == tuple(f"LABEL_{i}" for i in range(count))
        and ours == tuple(str(i) for i in range(count))
    ):
        return []
    name, last = _last_linear(model, count)
    tensors = [(f"{name}.{key}", tensor) for key, tensor in last.named_parameters()]
    if set(theirs) == set(ours) and len(theirs) == count:
        rows = torch.tensor([theirs.index(one) for one in ours])
        with torch.no_grad():
            for _, tensor in tensors:
                tensor.copy_(tensor[rows])
        return []
    with torch.no_grad():
        nn.init.normal_(last.weight, std=float(getattr(model.config, "initializer_range", 0.02)))
        if last.bias is not None:
            last.bias.zero_()
    return [key for key, _ in tensors]


def _last_linear(model: Any, count: int) -> tuple[str, nn.Linear]:
    encoder = f"{model.base_model_prefix}."
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(encoder)
    ]
    if not linears or linears[-1][1].out_features != count:
        raise ValueError(
            f"{type(model).__name__}: expected a head that ends in a linear layer with {count} rows"
        )
    return linears[-1]
