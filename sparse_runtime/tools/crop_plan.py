"""Which heads and neurons a checkpoint's layers may lose (docs/checkpoints.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, CheckpointError
from ..encoders.architecture import Architecture
from ..encoders.families import FAMILIES
from ..formats import Compression, observe
from ..formats.crop import (
    LEAST_NEURONS,
    Activation,
    Units,
    find_units,
    folded_bias,
    positions,
    removable,
)
from ..kernels.linear import reference as linear
from ..ops.reference import quantizer
from ..spec import FUNCTIONS, Structure, ValueSpec
from .crop import Crop, CroppedLayer
from .integers import linear_bias, linear_shape, packed_values

CHOICES = ("auto", "fold", "none")

# What blocks and groups span in the formats that zeros may show, the largest first.
_SPANS = (64, 32, 16, 8, 4, 2)


def check_crop(
    checkpoint: Checkpoint, policy: Compression, choice: str, *, calibrated: bool
) -> None:
    """Refuse early what :func:`plan_crop` would refuse after minutes of calibration.

    Args:
        checkpoint: the source.
        policy: how its layers are packed.
        choice: what must be one of ``CHOICES``.
        calibrated: layers are solved before they are cropped, which states integer values.

    Raises:
        ValueError: another choice, or "fold" for layers that cannot be cropped.
    """
    if choice not in CHOICES:
        raise ValueError(f"crop {choice!r}: expected one of {', '.join(map(repr, CHOICES))}")
    if choice != "fold":
        return
    if calibrated and policy.values.is_integer:
        raise ValueError(
            "crop 'fold': calibration rounds the layers to integers, and what a constant adds "
            "cannot go through their quantized inputs; leave crop or calibration out"
        )
    reason = _reason(checkpoint, policy, choice)
    if reason is not None:
        raise ValueError(f"crop 'fold': {reason}; leave crop out")


def plan_crop(
    checkpoint: Checkpoint, modules: Sequence[str], policy: Compression, choice: str
) -> Crop:
    """Find the heads and neurons that may go.

    Nothing goes where a pruning policy or an unknown family leaves it open what that would change.

    Args:
        checkpoint: the source.
        modules: its encoder's linear layers.
        policy: how they are packed; a structure's groups and blocks stay whole.
        choice: one of ``CHOICES``, as :func:`check_crop` lets it pass.
    """
    family = _family(checkpoint)
    if choice == "none" or family is None or _reason(checkpoint, policy, choice) is not None:
        return Crop()
    planner = _Planner(checkpoint, policy, family, fold=choice == "fold")
    known = set(modules)
    for base in _layer_names(family, modules):
        planner.plan_layer(base, known)
    return planner.crop


def _reason(checkpoint: Checkpoint, policy: Compression, choice: str) -> str | None:
    """Why nothing may go, or None."""
    reasons = {
        # A quantizer stands between a constant and the layer that would take it in.
        "the source states integers": choice == "fold" and bool(checkpoint.linears),
        "prune counts the zeros of whole matrices": policy.sparsity is not None,
        "the model's family is not known": _family(checkpoint) is None,
    }
    return next((text for text, holds in reasons.items() if holds), None)


def _family(checkpoint: Checkpoint) -> Architecture | None:
    return FAMILIES.get(str(checkpoint.config.get("model_type")))


def head_size_of(config: Mapping[str, Any], hidden: int, stated: int | None) -> int | None:
    """Features of an attention head: as stated, or by config.json; None where neither says it."""
    heads = config.get("num_attention_heads", config.get("n_heads"))
    if stated is not None or not isinstance(heads, int) or heads < 1 or hidden % heads:
        return stated
    return hidden // heads


def _layer_names(family: Architecture, modules: Sequence[str]) -> list[str]:
    """Full names of the layers, in the modules' order."""
    pattern = re.compile(rf"((?:.*\.)?{re.escape(family.stack)}\.\d+)\..+")
    found = (pattern.fullmatch(module) for module in modules)
    return list(dict.fromkeys(match[1] for match in found if match))


@dataclass(frozen=True)
class _Part:
    """The tensors of a half of a layer: those that lose rows, and the one that loses columns."""

    producers: tuple[str, ...]  # the last one's outputs are what the reader sees
    reader: str


class _Planner:
    """Goes through the layers, one in memory at a time."""

    def __init__(
        self, checkpoint: Checkpoint, policy: Compression, family: Architecture, *, fold: bool
    ) -> None:
        self.crop = Crop()
        self._checkpoint = checkpoint
        self._policy = policy
        self._family = family
        self._fold = fold
        name = checkpoint.config.get(family.activation_key, "gelu")
        self._activation = linear.ACTIVATIONS.get(FUNCTIONS.get(str(name), ""))

    def plan_layer(self, base: str, known: set[str]) -> None:
        names = self._family.layer
        none = torch.zeros(0, dtype=torch.bool)
        heads, neurons, folded, silent = none, none, 0, True
        attention = _part(base, names.qkv, names.attention_out)
        size = self._head_size(attention, known)
        if size is not None:
            heads, constants, unseen = self._plan_part(attention, size, None)
            folded, silent = folded + constants, silent and unseen
        ffn = _part(base, (names.ffn_in,), names.ffn_out)
        if self._activation is not None and known.issuperset((*ffn.producers, ffn.reader)):
            neurons, constants, unseen = self._plan_part(ffn, 1, self._activation)
            folded, silent = folded + constants, silent and unseen
        if heads.any() or neurons.any():
            removed = tuple(int(head) for head in heads.nonzero())
            self.crop.layers.append(CroppedLayer(base, removed, int(neurons.sum()), folded, silent))

    def _plan_part(
        self, part: _Part, size: int, activation: Activation | None
    ) -> tuple[Tensor, int, bool]:
        """(bool [units] that go, how many of them are folded, whether all are silent)."""
        producer, bias = self._weight(part.producers[-1]), self._bias(part.producers[-1])
        reader = self._weight(part.reader)
        shapes = {module: self._shape(module)[0] for module in part.producers}
        if set(shapes.values()) != {reader.shape[1]}:
            raise CheckpointError(
                f"{part.reader}.weight: expected as many columns as the layers before it have rows "
                f"{shapes}, got {reader.shape[1]}; the checkpoint is damaged"
            )
        seen = self._requantized(part.producers[-1], activation)
        units = find_units(producer, bias, reader, size=size, activation=seen)
        if self._scales_by_token(part.reader):
            # What nobody reads still counts in the scale of its token, unless it is 0.
            units = replace(units, unread=units.unread & units.zero)
        gone = removable(units, fold=self._fold)
        if not gone.any():
            return gone, 0, True
        gone = removable(units, group=self._group(part, units, size), fold=self._fold)
        if size == 1 and not self._fold and int(gone.sum()) < LEAST_NEURONS * len(gone):
            return torch.zeros_like(gone), 0, True
        kept = positions(~gone, size)
        for module in part.producers:
            self.crop.rows[module] = kept
        self.crop.columns[part.reader] = kept
        constants = gone & ~units.zero & ~units.unread
        if constants.any():
            self.crop.biases[part.reader] = folded_bias(
                reader,
                self._bias(part.reader),
                producer,
                bias,
                positions(constants, size),
                activation,
            )
        return gone, int(constants.sum()), bool((units.zero & units.unread)[gone].all())

    def _group(self, part: _Part, units: Units, size: int) -> int:
        """How many units must go together, so that blocks, groups and shared scales stay whole."""
        span = size
        for module in (*part.producers, part.reader):
            axis = 1 if module == part.reader else 0
            values = self._values(module)
            span = lcm(span, (values.group_cols if axis else values.chunk_rows) or 1)
            if self._policy.structure is not None:
                span = lcm(span, _span(self._policy.structure, axis))
            elif any(size % shown for shown in _SPANS):
                span = lcm(span, self._shown_span(module, axis, units, size))
        return span // size

    def _shown_span(self, module: str, axis: int, units: Units, size: int) -> int:
        """The span of the pattern that is seen once the removable units are gone, or 1."""
        weight, values = self._weight(module), self._values(module)
        if values.zero_points:
            return 1  # packed dense
        for span in (1, *_SPANS):
            together = lcm(size, span) // size
            gone = removable(units, group=together, fold=self._fold)
            left = weight.index_select(axis, positions(~gone, size))
            structure = observe(left, values).structure
            if _span(structure, axis) > 1:
                return 1 if span == 1 else _span(structure, axis)
            if span == 1 and structure.kind == "dense":
                return 1
        return 1

    def _head_size(self, part: _Part, known: set[str]) -> int | None:
        """None where a layer's heads are not to be told apart, or their number is fixed."""
        if self._family.relative_bias is not None or len(part.producers) != 3:
            return None
        if not known.issuperset((*part.producers, part.reader)):
            return None
        rows, hidden = self._shape(part.producers[0])
        size = head_size_of(self._checkpoint.config, hidden, self._checkpoint.head_size)
        return None if size is None or rows % size else size

    def _scales_by_token(self, module: str) -> bool:
        """Whether a layer's stated integers multiply inputs whose scales are their tokens' own."""
        stated = self._checkpoint.linears.get(module)
        inputs = None if stated is None else stated.activations
        return inputs is not None and inputs.scheme == "dynamic"

    def _requantized(self, module: str, activation: Activation | None) -> Activation | None:
        """What stands behind a layer: its stated output quantizer, then the activation."""
        stated = self._checkpoint.linears.get(module)
        outputs = None if stated is None else quantizer(stated.outputs)
        if outputs is None:
            return activation

        def seen(y: Tensor) -> Tensor:
            y = linear.requantize(y, outputs).double()
            return y if activation is None else activation(y)

        return seen

    def _shape(self, module: str) -> tuple[int, ...]:
        return linear_shape(self._checkpoint, module)

    def _values(self, module: str) -> ValueSpec:
        return packed_values(self._checkpoint, module, self._policy.values)

    def _weight(self, module: str) -> Tensor:
        """float32 [out, in]: the weight, or its integers, which are 0 where it is."""
        if module in self._checkpoint.linears:
            return self._checkpoint.linears[module].centred().float()
        name = f"{module}.weight"
        return self._checkpoint.tensors[self._checkpoint.aliases.get(name, name)].float()

    def _bias(self, module: str) -> Tensor | None:
        return linear_bias(self._checkpoint, module)


def _part(base: str, producers: Sequence[str], reader: str) -> _Part:
    return _Part(tuple(f"{base}.{name}" for name in producers), f"{base}.{reader}")


def _span(structure: Structure, axis: int) -> int:
    """Rows (axis 0) or columns (1) that belong together in a structure."""
    if structure.kind == "block":
        return structure.cols if axis else structure.rows
    return structure.m if structure.kind == "nm" and axis else 1
