"""Whole attention heads and feed-forward neurons pruned in minutes, without training.

After Kwon et al., "A Fast Post-Training Pruning Framework for Transformers" (NeurIPS 2022): masks
are searched by the Fisher information, rearranged within layers, and what reads the units that
stay is fitted, layer after layer, to the outputs of a teacher: the model less what the same search
removes at the square root of the share. The rows and columns of units that go are zeros in the
result, so that ``convert`` crops them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..targets import Component, EncoderLayer, layers
from .calibrate import STAGES, Stage, walk
from .fisher import MaskGradients, Objective, mask_gradients
from .hessian import InputStatistics
from .permutation import head_size_of
from .unit_search import rearrange, search_masks
from .unit_tuning import DAMPING, LARGEST_SCALE, tune_columns, tune_scales

Tuning = Literal["columns", "scales", "none"]
TUNINGS: tuple[Tuning, ...] = ("columns", "scales", "none")


@dataclass(frozen=True)
class PrunedUnits:
    """What is left of one layer.

    Attributes:
        name: of the layer, such as "encoder.layer.3".
        heads: bool [heads], True stayed.
        neurons: bool [neurons], True stayed.
    """

    name: str
    heads: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class StructuredReport:
    """What :func:`prune_structured` did.

    Attributes:
        layers: first to last.
        flops: multiply-adds that the kept units take, as a share of those of all units.
    """

    layers: tuple[PrunedUnits, ...]
    flops: float

    @property
    def heads_removed(self) -> int:
        """Of all layers."""
        return sum(int((~layer.heads).sum()) for layer in self.layers)

    @property
    def neurons_removed(self) -> int:
        """Of all layers."""
        return sum(int((~layer.neurons).sum()) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: how much went, and what each layer keeps."""
        return {
            "flops": self.flops,
            "heads_removed": self.heads_removed,
            "neurons_removed": self.neurons_removed,
            "layers": {
                layer.name: {
                    "heads": layer.heads.nonzero().squeeze(1).tolist(),
                    "neurons": int(layer.neurons.sum()),
                }
                for layer in self.layers
            },
        }


@dataclass(frozen=True)
class UnitCosts:
    """Multiply-adds a token of one unit.

    Attributes:
        head: its rows of queries, keys and values, its columns of the output, and its attention.
        neuron: its row and its column.
    """

    head: float
    neuron: float


def unit_costs(model: nn.Module, tokens: float) -> UnitCosts:
    """What a head and a neuron cost in sequences of so many tokens.

    Args:
        model: a transformers encoder.
        tokens: of a sequence; attention to them is counted with the head.
    """
    first = layers(model)[0].linears
    hidden, size = first["query"].in_features, head_size_of(model)
    out = first["attention_output"].out_features
    head = size * (3 * hidden + out) + 2 * size * tokens
    return UnitCosts(head, first["ffn_in"].in_features + first["ffn_out"].out_features)


def prune_structured(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    *,
    flops: float,
    objective: Objective | None = None,
    tuning: Tuning = "columns",
    damping: float = DAMPING,
    seed: int = 0,
    progress: bool | None = None,
) -> StructuredReport:
    """Zero whole heads and neurons in place until the rest takes a share of the multiply-adds.

    Args:
        model: a transformers encoder in eval mode.
        batches: calibration inputs, with "attention_mask".
        flops: share of the multiply-adds of all heads and neurons to keep, above 0 and at most 1;
            embeddings and whatever is behind the stack are not counted.
        objective: loss of each example, where there are labels; None needs none.
        tuning: "columns" fits all weights that read what stays and their biases, "scales" one
            factor a unit (that of the paper), "none" leaves them. Both aim at the outputs of
            :func:`teacher_units`.
        damping: of the fit.
        seed: of the projections that stand for labels.
        progress: show progress bars; None shows them where stderr is a terminal.

    Raises:
        ValueError: a share or tuning that is none of these; or too small a share for one head and
            one neuron in each layer.
    """
    if not 0 < flops <= 1:
        raise ValueError(f"flops {flops}: expected a share above 0 and at most 1")
    if tuning not in TUNINGS:
        raise ValueError(f"tuning {tuning!r}: expected one of {', '.join(map(repr, TUNINGS))}")
    gradients = mask_gradients(model, batches, objective, seed=seed, progress=progress)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    costs = unit_costs(model, float(lengths.double().mean()))
    units = choose_units(model, gradients, costs, flops)
    teacher = teacher_units(model, gradients, costs, flops, units)
    remove_units(model, batches, units, teacher, tuning=tuning, damping=damping, progress=progress)
    kept = sum(int(u.heads.sum()) * costs.head + int(u.neurons.sum()) * costs.neuron for u in units)
    whole = sum(len(u.heads) * costs.head + len(u.neurons) * costs.neuron for u in units)
    return StructuredReport(tuple(units), kept / whole)


def choose_units(
    model: nn.Module, gradients: MaskGradients, costs: UnitCosts, flops: float
) -> list[PrunedUnits]:
    """Search masks within a share of the cost of all units, and rearrange them in each layer."""
    return [
        PrunedUnits(
            one.name,
            rearrange(one.heads, gradients.heads[i]),
            rearrange(one.neurons, gradients.neurons[i]),
        )
        for i, one in enumerate(_search(model, gradients, costs, flops))
    ]


def teacher_units(
    model: nn.Module,
    gradients: MaskGradients,
    costs: UnitCosts,
    flops: float,
    units: Sequence[PrunedUnits],
) -> list[PrunedUnits]:
    """What tuning aims at: the units of the same search at the square root of the share.

    Kwon et al.'s code tunes towards this half-pruned model, neither rearranged nor tuned.

    Args:
        model: a transformers encoder.
        gradients: that ``units`` were chosen by.
        costs: that they were chosen by.
        flops: share that they were chosen for.
        units: what stays in the end; all of it is in the teacher too, which the search alone
            promises neither for rearranged units nor where it takes fewer heads of a larger budget.
    """
    found = _search(model, gradients, costs, math.sqrt(flops))
    return [
        PrunedUnits(one.name, one.heads | kept.heads, one.neurons | kept.neurons)
        for one, kept in zip(found, units, strict=True)
    ]


def _search(
    model: nn.Module, gradients: MaskGradients, costs: UnitCosts, flops: float
) -> list[PrunedUnits]:
    heads = [one.double().square().mean(0) for one in gradients.heads]
    neurons = [one.double().square().mean(0) for one in gradients.neurons]
    whole = sum(map(len, heads)) * costs.head + sum(map(len, neurons)) * costs.neuron
    least = (len(heads) * costs.head + len(neurons) * costs.neuron) / whole
    if flops < least:
        raise ValueError(
            f"flops (--keep-flops) {flops:g}: one head and one neuron in each of {len(heads)} "
            f"layers take {least:.4f} of the multiply-adds; give more"
        )
    found = search_masks(
        heads, neurons, head_cost=costs.head, neuron_cost=costs.neuron, budget=flops * whole
    )
    return [
        PrunedUnits(layer.path, *masks) for layer, *masks in zip(layers(model), *found, strict=True)
    ]


def remove_units(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    units: Sequence[PrunedUnits],
    teacher: Sequence[PrunedUnits],
    *,
    tuning: Tuning = "columns",
    damping: float = DAMPING,
    progress: bool | None = None,
) -> None:
    """Zero units that do not stay, and fit what reads the others, in place.

    Layer after layer, with the inputs that the pruned model gives and the outputs, residual sum
    included, that the model gives with the teacher's units. As in Kwon et al.'s code, "scales"
    leaves the first layer's heads, and stops for good at a fit with a factor beyond
    ``LARGEST_SCALE``.

    Args:
        model: a transformers encoder in eval mode.
        batches: calibration inputs; none are run with tuning "none".
        units: what stays, a layer each.
        teacher: units of the model whose outputs are aimed at, a layer each.
        tuning: as in :func:`prune_structured`.
        damping: of the fit.
        progress: show a progress bar; None shows it where stderr is a terminal.
    """
    by_path = {kept.name: kept for kept in units}
    if tuning == "none":
        for layer in layers(model):
            for components in STAGES:
                _zero(layer, components, by_path[layer.path])
        return

    aims = {kept.name: kept for kept in teacher}
    going = True

    def aim(layer: EncoderLayer) -> None:
        for components in STAGES:
            _zero(layer, components, aims[layer.path])

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        nonlocal going
        kept = by_path[stage.layer.path]
        part = stage.components[0]
        first = stage.layer.index == 0 and part == "attention_output"
        tuned = part in ("attention_output", "ffn_out") and not (tuning == "scales" and first)
        if going and tuned:
            mask = kept.heads if part == "attention_output" else kept.neurons
            name, linear = next(iter(stage.linears.items()))
            going = _fit(name, linear, mask, statistics, tuning, damping)
        _zero(stage.layer, stage.components, kept)

    walk(model, batches, visit, follow_dense=True, aim=aim, progress=progress)


def _fit(
    name: str,
    linear: nn.Linear,
    kept: Tensor,
    statistics: InputStatistics,
    tuning: Tuning,
    damping: float,
) -> bool:
    """Fit the weights in place; False where they were left, for no fit from here on is sound."""
    size = linear.in_features // len(kept)
    if tuning == "scales":
        factors = tune_scales(name, linear.weight, kept, statistics, damping=damping)
        if not bool((factors.abs() <= LARGEST_SCALE).all()):  # true of no NaN either
            return False
        linear.weight.mul_(factors.repeat_interleave(size).to(linear.weight))
        return True
    weight, shift = tune_columns(
        name, linear.weight, kept.repeat_interleave(size), statistics, damping=damping
    )
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.add_(shift.to(linear.bias))
    return True


def _zero(layer: EncoderLayer, components: Sequence[Component], kept: PrunedUnits) -> None:
    """Zero what belongs to units that go in some of a layer's matrices."""
    for part in components:
        linear = layer.linears[part]
        mask = kept.neurons if part in ("ffn_in", "ffn_out") else kept.heads
        reads = part in ("attention_output", "ffn_out")
        channels = linear.in_features if reads else linear.out_features
        gone = ~mask.repeat_interleave(channels // len(mask))
        with torch.no_grad():
            if reads:
                linear.weight[:, gone] = 0
                continue
            linear.weight[gone] = 0
            if linear.bias is not None:
                linear.bias[gone] = 0
