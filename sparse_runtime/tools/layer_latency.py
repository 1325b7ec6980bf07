"""What each layer costs in each format on this machine: timed inside whole forward passes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from torch import nn

from ..compress.oneshot.allocation import CostTable, Shape
from ..compress.oneshot.channels import ALL, live_channels
from ..compress.oneshot.layer_format import BY_TOKEN, LayerFormat
from ..compress.oneshot.permutation import head_size_of
from ..compress.targets import encoder_linears
from ..encoders import SparseModel
from ..spec import ActivationSpec
from ..store import PackedLinear, PackedModel

__all__ = ["ROUNDS", "Shape", "latency_costs", "measure_latency", "pack_model"]

ROUNDS = 30
_WARMUP = 3
_Key = TypeVar("_Key")


_ATTENTION = "attention"
"""Label of the backend's stages that attend, which name no layer."""


def pack_model(
    model: nn.Module,
    formats: Mapping[str, LayerFormat],
    inputs: ActivationSpec | Mapping[str, ActivationSpec | None] | None = BY_TOKEN,
    *,
    solved: bool = True,
) -> PackedModel:
    """Pack a transformers encoder in memory, each layer in its format, as ``convert`` crops it.

    Weights that do not fit their format are pruned by magnitude and rounded.

    Args:
        model: a transformers encoder.
        formats: name of every linear layer of the stack -> format.
        inputs: how those of integer values are quantized, of all layers or by name.
        solved: whether the weights are final; others are packed as full as solving may leave them,
            to be timed only.
    """
    linears = encoder_linears(model)
    missing = sorted(linears.keys() - formats.keys())
    if missing:
        raise ValueError(
            f"formats: expected one for every layer, none for {', '.join(missing[:4])}"
        )
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    live = live_channels(model)
    packed = {}
    for name in linears:
        weight = state.pop(f"{name}.weight")
        bias = state.pop(f"{name}.bias", None)
        left = live.get(name, ALL)
        how = inputs.get(name) if isinstance(inputs, Mapping) else inputs
        pack = formats[name].pack if solved else formats[name].pack_unsolved
        packed[name] = PackedLinear(pack(left.of(weight), how), left.of_bias(bias))
    settings: Any = model.config
    config = {**settings.to_dict(), "architectures": [type(model).__name__]}
    return PackedModel(config, packed, state, head_size=head_size_of(model))


def latency_costs(
    model: nn.Module,
    units: Mapping[str, Sequence[str]],
    formats: Sequence[LayerFormat],
    reference: LayerFormat,
    shape: Shape,
    *,
    inputs: ActivationSpec | None = BY_TOKEN,
    rounds: int = ROUNDS,
) -> CostTable:
    """Seconds of every unit in every format, measured inside forward passes of this runtime.

    For each format the whole model is packed in it and run, the formats in turns, and the stages
    of every layer are timed where they run: with the layers before and after them, the model's
    caches and threads; attention with the queries, keys and values before it. What is left of a
    pass, the median over all formats, is the fixed part.

    Args:
        model: a transformers encoder.
        units: of ``units_of(model, fused=True)``: queries, keys and values run as one product.
        formats: to compare.
        reference: what relative targets are a share of.
        shape: of the batches.
        inputs: how those of integer values are quantized.
        rounds: passes of each format.

    Raises:
        ValueError: a unit is not what the runtime runs as one.
        RuntimeError: the backend does not time its stages; only the CPU's does.
    """
    every = list(dict.fromkeys([*formats, reference]))
    linears = encoder_linears(model)
    # What no unit names runs in the reference format and counts as fixed.
    named = {name for members in units.values() for name in members}
    models = {
        choice: SparseModel.from_packed(
            pack_model(
                model,
                {n: choice if n in named else reference for n in linears},
                inputs,
                solved=False,
            ),
            backend="cpu",
        )
        for choice in every
    }
    seconds: dict[LayerFormat, dict[str, list[float]]] = {f: defaultdict(list) for f in every}
    rest: dict[LayerFormat, list[float]] = {f: [] for f in every}
    for choice in _in_turns(every, rounds, models, shape):
        with models[choice].stage_times() as times:
            whole = _timed(models[choice], shape)
        inside = _by_unit(times, units)
        for unit, value in inside.items():
            seconds[choice][unit].append(value)
        rest[choice].append(whole - sum(inside.values()))
    fixed = median(median(values) for values in rest.values())
    costs = {unit: {f: median(seconds[f][unit]) for f in every} for unit in units}
    return CostTable("latency", fixed, costs, reference)


def measure_latency(
    models: Mapping[str, SparseModel], shape: Shape, *, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of a forward pass of each model, in turns."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for name in _in_turns(list(models), rounds, models, shape):
        found[name].append(_timed(models[name], shape))
    return {name: median(values) for name, values in found.items()}


def _in_turns(
    names: Sequence[_Key], rounds: int, models: Mapping[_Key, SparseModel], shape: Shape
) -> Iterator[_Key]:
    """Names in turns, to be timed; each has run once just before, so the caches are its own."""
    for name in names:
        for _ in range(_WARMUP):
            _timed(models[name], shape)
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            _timed(models[name], shape)
            yield name


def _timed(model: SparseModel, shape: Shape) -> float:
    ids = torch.full((shape.batch, shape.seq), 5, dtype=torch.int64)
    begin = time.perf_counter()
    model(ids)
    return time.perf_counter() - begin


def _by_unit(
    times: Sequence[tuple[str, float]], units: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Seconds of each unit's stages, whose labels begin with its name.

    Attention counts with the queries, keys and values that it follows: of few tokens the backend
    computes them and attends in one stage, in one format and not in another.
    """
    found = dict.fromkeys(units, 0.0)
    seen = set()
    unit = None
    for label, seconds in times:
        name = label.partition(" (")[0]
        if name != _ATTENTION:
            unit = name.removesuffix(f" + {_ATTENTION}")
        if unit in found:
            found[unit] += seconds
            seen.add(unit)
    missing = [unit for unit in units if unit not in seen]
    if missing:
        labels = sorted({label for label, _ in times})
        raise ValueError(
            f"units: {missing[0]} is not run as one product; take units_of(model, fused=True). "
            f"Stages are {', '.join(labels[:6])}"
        )
    return found
