"""Which numbers of a model's outputs are compared, and which of them are of padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def judged(outputs: Any) -> Tensor:
    """The numbers that a model is judged by: [batch, features], or [batch, tokens, features].

    Which of the two is said by what the output is, not by its sizes: a model may have as many
    classes as a text has tokens.

    Args:
        outputs: of a transformers model, without a loss.
    """
    start, end = getattr(outputs, "start_logits", None), getattr(outputs, "end_logits", None)
    if start is not None and end is not None:
        return torch.stack([start, end], -1)  # of every token
    return outputs[0]


def without_padding(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What :func:`judged` gives, [tokens, features] where it is of tokens."""
    return output[batch["attention_mask"].bool()] if output.ndim == 3 else output
