"""Whole heads and feed-forward neurons, by what the loss says of each (CAP-f).

Source: "From Dense to Sparse: Contrastive Pruning" (CAP, arXiv 2112.07198), after "Are Sixteen
Heads Really Better than One?" (arXiv 1905.10650): with a factor m = 1 on each head's and each
neuron's output, importance is the sum over batches of |dL/dm|.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....formats.project import keep_largest
from ...masks import Mask, attach_masks, original_weight
from ...targets import EncoderLayer, layers
from ..context import Training
from ..schema import WrongValue, require
from .base import Pruner, mask_metrics

if TYPE_CHECKING:
    from ...patterns import Pattern
    from ..sections import Pruning


@dataclass(frozen=True)
class StructuredOptions:
    """Options of structured pruning.

    Attributes:
        ratios: shares of all heads, and of all neurons, that are gone after each pruning step. The
            stage's steps are divided evenly: each begins with a pruning step, the rest retrains.
        batches: to sum importance over; null is one pass over the training data.
        batch_size: examples of each of these batches.
    """

    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    batches: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        pairs = zip((0.0, *self.ratios), (*self.ratios, 1.0), strict=True)
        rising = bool(self.ratios) and all(one < next_one for one, next_one in pairs)
        require(
            ratios=(list(self.ratios), rising, "rising numbers between 0 and 1"),
            batches=(self.batches, self.batches is None or self.batches >= 1, "1 or more, or null"),
            batch_size=(self.batch_size, self.batch_size >= 1, "1 or more"),
        )


def gate_gradients(weight: Tensor, gradient: Tensor, size: int) -> Tensor:
    """dL/dm of a factor m = 1 on each unit that a matrix reads, [in / size].

    A factor on some inputs is one on their columns, so the sum of ``w * dL/dw`` over these is its
    derivative, exactly.

    Args:
        weight: of the layer that reads the units, float [out, in].
        gradient: dL/dw, float [out, in].
        size: inputs of one unit: a head's size, or 1 for neurons.
    """
    return (weight.double() * gradient.double()).sum(0).view(-1, size).sum(1)


def choose_units(importance: Tensor, kept: int, alive: Tensor) -> Tensor:
    """Which units stay: normalised in each layer, ranked over all, at least one a layer.

    Args:
        importance: float [layers, units], at least 0; divided by its L2 norm over each layer.
        kept: number of units that stay in all.
        alive: bool [layers, units]; others stay away.

    Returns:
        bool [layers, units]. It has one unit a layer where ``kept`` is less than that.
    """
    importance = torch.where(alive, importance, 0.0)
    norms = importance.norm(dim=1, keepdim=True)
    scores = torch.where(norms > 0, importance / norms, 0.0)
    scores = torch.where(alive, scores, -1.0)
    best = scores.argmax(dim=1, keepdim=True)
    scores = scores.scatter(1, best, torch.inf)
    kept = max(kept, len(importance))
    return keep_largest(scores.flatten(), kept).view_as(alive) & alive


class StructuredPruner(Pruner):
    """Takes out heads and neurons in steps of rising ratios, with training between them.

    A head that goes takes its rows of query, key and value and its columns of the attention's
    output along, a neuron its row and its column. ``finish`` zeroes their biases, so that packing
    crops them.
    """

    Options = StructuredOptions
    needs_pattern = False
    reads_gradients = ("attention_output", "ffn_out")
    masks: dict[str, Mask]
    heads: Tensor
    neurons: Tensor

    @classmethod
    def check_model(
        cls,
        settings: Pruning,
        patterns: Mapping[str, Pattern],
        model: nn.Module,
        linears: Mapping[str, nn.Linear],
        steps: int,
    ) -> None:
        """Whole layers, alike in size, and a step for each ratio."""
        super().check_model(settings, patterns, model, linears, steps)
        found = layers(model)
        names = {name for layer in found for name in layer.names.values()}
        if names != set(linears):
            key = "pooler" if settings.pooler else "include" if settings.include else "exclude"
            raise WrongValue(
                key,
                f"{sorted(names ^ set(linears))[0]}: structured pruning takes all six matrices of "
                "every layer and no others; leave include, exclude and pooler out",
            )
        widths = {layer.linears["ffn_in"].out_features for layer in found}
        if len(widths) > 1:
            raise WrongValue(
                "method", f"layers have {sorted(widths)} neurons; expected as many in each"
            )
        ratios = settings.options.ratios
        if steps < len(ratios):
            raise WrongValue(
                "ratios",
                f"{steps} steps are too few for {len(ratios)} ratios, one step each at least; "
                "expected fewer ratios or a longer training",
            )

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Mask all six matrices of each layer."""
        super().attach(model, linears, training)
        self._layers = layers(model)
        self.masks = attach_masks(self.linears)
        heads = int(model.config.num_attention_heads)  # type: ignore[union-attr,arg-type]
        self.heads = torch.ones(len(self._layers), heads, dtype=torch.bool)
        width = self._layers[0].linears["ffn_in"].out_features
        self.neurons = torch.ones(len(self._layers), width, dtype=torch.bool)

    def begin_step(self, step: int, total: int) -> None:
        """Prune where one of the stage's parts begins."""
        ratios = self.settings.options.ratios
        for i, ratio in enumerate(ratios):
            if step == i * total // len(ratios):
                self._prune(ratio, self.training.seed + i)

    def finish(self) -> None:
        """Zero the biases of what is gone: no other weight sees them."""
        with torch.no_grad():
            for layer, heads, neurons in self._by_layer():
                gone = ~heads.repeat_interleave(self._head_size(layer))
                for part in ("query", "key", "value"):
                    _zero_bias(layer.linears[part], gone)
                _zero_bias(layer.linears["ffn_in"], ~neurons)

    def metrics(self) -> dict[str, float]:
        """Shares of zeros, and of heads and neurons that are gone."""
        return {
            **mask_metrics(self.masks),
            "heads_gone": float((~self.heads).double().mean()),
            "neurons_gone": float((~self.neurons).double().mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Which heads [layers, heads] and neurons [layers, neurons] are left."""
        return {"heads": self.heads.clone(), "neurons": self.neurons.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back :meth:`state_dict`'s form."""
        self.heads, self.neurons = state["heads"].clone(), state["neurons"].clone()

    def _prune(self, ratio: float, seed: int) -> None:
        heads, neurons = self._importance(seed)
        for alive, importance in ((self.heads, heads), (self.neurons, neurons)):
            kept = alive.numel() - round(ratio * alive.numel())
            alive.copy_(choose_units(importance, kept, alive))
        for layer, its_heads, its_neurons in self._by_layer():
            inside = its_heads.repeat_interleave(self._head_size(layer))
            for part in ("query", "key", "value"):
                self._mask(layer, part, inside.unsqueeze(1))
            self._mask(layer, "attention_output", inside.unsqueeze(0))
            self._mask(layer, "ffn_in", its_neurons.unsqueeze(1))
            self._mask(layer, "ffn_out", its_neurons.unsqueeze(0))

    def _importance(self, seed: int) -> tuple[Tensor, Tensor]:
        """Of heads [layers, heads] and neurons [layers, neurons]."""
        options = self.settings.options
        heads = torch.zeros(self.heads.shape, dtype=torch.float64)
        neurons = torch.zeros(self.neurons.shape, dtype=torch.float64)
        batches = options.batches or -(-self.training.examples // options.batch_size)
        for _ in self.training.gradients(batches, options.batch_size, seed):
            for i, layer in enumerate(self._layers):
                size = self._head_size(layer)
                heads[i] += _of_inputs(layer.linears["attention_output"], size)
                neurons[i] += _of_inputs(layer.linears["ffn_out"], 1)
        return heads, neurons

    def _by_layer(self) -> list[tuple[EncoderLayer, Tensor, Tensor]]:
        return list(zip(self._layers, self.heads, self.neurons, strict=True))

    def _head_size(self, layer: EncoderLayer) -> int:
        return layer.linears["attention_output"].in_features // self.heads.shape[1]

    def _mask(self, layer: EncoderLayer, part: Any, keep: Tensor) -> None:
        mask = self.masks[layer.names[part]]
        mask.update(keep.to(mask.mask.device).expand_as(mask.mask))


def _of_inputs(linear: nn.Linear, size: int) -> Tensor:
    weight = original_weight(linear)
    assert weight.grad is not None  # Training.gradients has just computed it
    return gate_gradients(weight.detach(), weight.grad, size).abs().cpu()


def _zero_bias(linear: nn.Linear, gone: Tensor) -> None:
    if linear.bias is not None:
        linear.bias[gone.to(linear.bias.device)] = 0.0
