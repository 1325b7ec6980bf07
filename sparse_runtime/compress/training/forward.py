"""One forward pass of a student or a teacher, and all that losses may want to see of it.

Attention scores are taken from the outputs of the query and key matrices by hooks, so that they
are the same under every attention implementation and no model code is repeated here. A position
bias that an architecture adds to its scores (MPNet, T5) is not part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..targets import layers

POOLINGS = ("mean", "cls", "pooler")


@dataclass
class Outputs:
    """What one forward pass gave.

    Attributes:
        attention_mask: bool [batch, tokens], False where padded.
        logits: float [batch, classes] or, of a masked-LM head, [batch, tokens, vocabulary]; None
            for an encoder without a head.
        hidden_states: float [batch, tokens, hidden] of the embeddings and of every layer; empty
            unless asked for.
        attention_scores: float [batch, heads, tokens, tokens] of every layer, scaled, before the
            mask and the softmax; empty unless asked for.
        pooler: float [batch, hidden], what the model's own pooler gave; None without one.
        last_hidden: float [batch, tokens, hidden], None unless hidden states were asked for or the
            model has no head.
        sentence: float [batch, hidden], what ``pooled`` gives for the run's pooling; set where the
            task is sentence embeddings.
    """

    attention_mask: Tensor
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()
    attention_scores: tuple[Tensor, ...] = ()
    pooler: Tensor | None = None
    last_hidden: Tensor | None = None
    sentence: Tensor | None = None

    def pooled(self, how: str = "mean") -> Tensor:
        """One vector a text, float [batch, hidden].

        Args:
            how: "mean" over the real tokens, "cls" (the first token), or "pooler" (the model's
                own, after its activation).

        Raises:
            ValueError: another word, a model without a pooler, or hidden states not asked for.
        """
        if how == "pooler":
            if self.pooler is None:
                raise ValueError("pooled 'pooler': this model has no pooler; say 'mean' or 'cls'")
            return self.pooler
        if how not in POOLINGS:
            raise ValueError(f"pooled {how!r}: expected one of {', '.join(POOLINGS)}")
        if self.last_hidden is None:
            raise ValueError(f"pooled {how!r}: needs hidden states, which were not asked for")
        if how == "cls":
            return self.last_hidden[:, 0]
        mask = self.attention_mask.unsqueeze(2).to(self.last_hidden.dtype)
        return (self.last_hidden * mask).sum(1) / mask.sum(1)


@dataclass
class _Seen:
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    pooler: Tensor | None = None


def run(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    hidden: bool = False,
    attention: bool = False,
    pooling: str | None = None,
) -> Outputs:
    """Run a transformers encoder, with or without a head.

    Args:
        model: the model, in the mode (train or eval) that is wanted.
        inputs: keyword arguments of its forward, ``attention_mask`` among them, no labels.
        hidden: return hidden states.
        attention: return attention scores.
        pooling: also return ``sentence``, pooled in this way.

    Raises:
        ValueError: attention scores of a model whose query and key matrices are not known.
    """
    with _watching(model, attention) as seen:
        result = model(**inputs, output_hidden_states=hidden, return_dict=True)
    states = tuple(result.hidden_states) if hidden else ()
    last = getattr(result, "last_hidden_state", None)
    if last is None and states:
        last = states[-1]
    outputs = Outputs(
        attention_mask=inputs["attention_mask"].bool(),
        logits=getattr(result, "logits", None),
        hidden_states=states,
        attention_scores=_scores(model, seen) if attention else (),
        pooler=seen.pooler,
        last_hidden=last,
    )
    if pooling is not None:
        outputs.sentence = outputs.pooled(pooling)
    return outputs


@contextmanager
def _watching(model: nn.Module, attention: bool) -> Iterator[_Seen]:
    seen = _Seen()
    handles = [
        module.register_forward_hook(_keep_pooler(seen))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "pooler"
    ]
    for layer in layers(model) if attention else ():
        handles.append(layer.linears["query"].register_forward_hook(_keep(seen.queries)))
        handles.append(layer.linears["key"].register_forward_hook(_keep(seen.keys)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output)

    return hook


def _keep_pooler(seen: _Seen) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.pooler = output

    return hook


def _scores(model: nn.Module, seen: _Seen) -> tuple[Tensor, ...]:
    config: Any = model.config
    heads = int(config.num_attention_heads)
    return tuple(_score(q, k, heads) for q, k in zip(seen.queries, seen.keys, strict=True))


def _score(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Scores [batch, heads, tokens, tokens] of queries and keys [batch, tokens, features]."""
    batch, tokens, features = query.shape
    if features % heads:
        raise ValueError(f"attention scores: {features} features do not divide into {heads} heads")
    size = features // heads
    query, key = (x.view(batch, tokens, heads, size).transpose(1, 2) for x in (query, key))
    return query @ key.transpose(2, 3) * size**-0.5


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode without gradients; each module's own mode is restored after."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
