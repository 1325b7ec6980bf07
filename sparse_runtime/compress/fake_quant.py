"""Quantization-aware training: linear layers that compute with what quantization leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checkpoints.errors import listed
from ..formats.quantize import symmetric_scales, to_integers
from ..spec import INTEGER_RANGES, ValueSpec
from .activation_quant import (
    ActivationFakeQuant,
    DynamicFakeQuant,
    StaticFakeQuant,
    StraightThrough,
)
from .masks import WeightTransform, original_weight, transforms
from .statement import LinearQuantization

Activations = Literal["static", "dynamic", "symmetric", "none"]

_INPUTS, _OUTPUTS = "input_fake_quant", "output_fake_quant"


class WeightFakeQuant(WeightTransform):
    """Gives ``integers x scales`` of a weight, with the rule of ``formats.cast_values``.

    The gradient passes straight through; where scales are fixed, it stops at weights beyond the
    range. Zeros stay zeros, so that a mask before it keeps its pattern.

    Args:
        values: symmetric "int8" or "int4" and which weights share a scale.
        scales: float32 [``values.scale_count(out, in)``] to keep; None takes the largest magnitude
            of each forward pass.
    """

    scales: Tensor | None

    def __init__(self, values: ValueSpec, scales: Tensor | None = None) -> None:
        super().__init__()
        if not values.is_integer or values.zero_points:
            raise ValueError(f"values: expected symmetric int8 or int4, got {values}")
        self.values = values
        self.register_buffer("scales", None if scales is None else scales.clone())

    def scales_of(self, weight: Tensor) -> Tensor:
        """The scales that :meth:`forward` takes for a weight, float32."""
        if self.scales is not None:
            return self.scales
        return symmetric_scales(weight.detach(), self.values)

    def forward(self, weight: Tensor) -> Tensor:
        """What is left of the weight, float32 [out, in]."""
        with torch.no_grad():
            source, scales = weight.detach(), self.scales_of(weight)
            spread = self.values.spread(scales, weight.shape[0], weight.shape[1])
            left = to_integers(source, scales, self.values) * spread
            # Up to half a step beyond the last integer is only rounded to it.
            most = INTEGER_RANGES[self.values.dtype][1] + 0.5
            inside = None if self.scales is None else source.abs() <= most * spread
        result: Tensor = StraightThrough.apply(weight, left, inside)
        return result

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        fixed = "" if self.scales is None else ", fixed"
        return f"{self.values.dtype}, scales={self.values.scales}{fixed}"


def attach_fake_quant(
    linears: Mapping[str, nn.Linear],
    *,
    weights: ValueSpec,
    activations: Activations = "static",
    outputs: Collection[str] = (),
    scales: Mapping[str, Tensor] | None = None,
    delay: int = 0,
    averaging: float = 0.01,
) -> None:
    """Quantize the weights and inputs of linear layers in every forward pass from now on; in place.

    Attach masks before, for scales are those of the weights that stay.

    Args:
        linears: by name; their weights are float32.
        weights: symmetric "int8" or "int4" and which weights share a scale.
        activations: of the inputs: "static" uint8 by a moving average, "dynamic" uint8 or
            "symmetric" int8 per token, or "none".
        outputs: names of layers whose output is quantized again, static uint8, as Prune Once For
            All does; only with static inputs.
        scales: fixed scales of the weights by name; None takes the largest magnitudes.
        delay: static only, batches before quantization starts.
        averaging: static only, share of a new batch in the moving average.

    Raises:
        ValueError: a layer is quantized already or not float32, or the arguments contradict.
    """
    if activations not in ("static", "dynamic", "symmetric", "none"):
        raise ValueError(
            f"activations {activations!r}: expected 'static', 'dynamic', 'symmetric' or 'none'"
        )
    unknown = set(outputs) - set(linears)
    if unknown or (outputs and activations != "static"):
        raise ValueError(
            f"outputs {listed(outputs)}: expected names of the layers given, with static "
            f"activations, got {activations!r} ones and {listed(unknown)} that are not given"
        )
    for name, linear in linears.items():
        _check(name, linear)
        fixed = None if scales is None else scales[name]
        quantizer = WeightFakeQuant(weights, fixed).to(linear.weight.device)
        parametrize.register_parametrization(linear, "weight", quantizer)
        if activations == "static":
            static = StaticFakeQuant(delay=delay, averaging=averaging)
            linear.add_module(_INPUTS, static.to(linear.weight.device))
        elif activations != "none":
            linear.add_module(_INPUTS, DynamicFakeQuant(activations))
        if activations != "none":
            linear.register_forward_pre_hook(_quantize_input)
        if name in outputs:
            again = StaticFakeQuant(delay=delay, averaging=averaging)
            linear.add_module(_OUTPUTS, again.to(linear.weight.device))
            linear.register_forward_hook(_quantize_output)


def _check(name: str, linear: nn.Linear) -> None:
    if any(isinstance(t, WeightFakeQuant) for t in transforms(linear)):
        raise ValueError(f"{name}: is fake-quantized already; attach once")
    if linear.weight.dtype != torch.float32:
        raise ValueError(
            f"{name}: expected a float32 weight, which integers x scales need, got "
            f"{linear.weight.dtype}; train in float32, or under autocast"
        )


# Plain functions, so that a model with them can be copied and pickled.
def _quantize_input(linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (linear.get_submodule(_INPUTS)(inputs[0]), *inputs[1:])


def _quantize_output(linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    left: Tensor = linear.get_submodule(_OUTPUTS)(output)
    return left


def end_delay(model: nn.Module) -> None:
    """Quantize by every static range from the next batch on.

    Raises:
        ValueError: one has observed nothing yet.
    """
    for module in model.modules():
        if isinstance(module, StaticFakeQuant):
            module.end_delay()


def freeze_ranges(model: nn.Module) -> int:
    """Keep every static range from now on, as the last part of a training does.

    Returns:
        How many there are.

    Raises:
        ValueError: one has observed nothing yet.
    """
    found = [module for module in model.modules() if isinstance(module, StaticFakeQuant)]
    for quantizer in found:
        quantizer.freeze()
    return len(found)


def read_quantization(model: nn.Module) -> dict[str, LinearQuantization]:
    """What the fake-quantized layers of a model compute, by name; none where there are none.

    Raises:
        ValueError: a static range is not known yet.
    """
    found = {}
    for name, module in model.named_modules():
        chain = transforms(module)
        places = [i for i, t in enumerate(chain) if isinstance(t, WeightFakeQuant)]
        if not places:
            continue
        weight = _weight_before(module, places[0])
        quantizer = cast(WeightFakeQuant, chain[places[0]])
        found[name] = LinearQuantization(
            values=quantizer.values,
            scales=quantizer.scales_of(weight).cpu(),
            activations=_spec(name, module, _INPUTS),
            outputs=_spec(name, module, _OUTPUTS),
        )
    return found


def _weight_before(linear: nn.Module, place: int) -> Tensor:
    with torch.no_grad():
        weight = original_weight(linear).detach()
        for transform in transforms(linear)[:place]:
            weight = transform(weight)
    return weight


def _spec(name: str, linear: nn.Module, part: str) -> Any:
    quantizer = getattr(linear, part, None)
    if not isinstance(quantizer, ActivationFakeQuant):
        return None
    try:
        return quantizer.spec()
    except ValueError as error:
        raise ValueError(f"{name}.{part}: {error}") from error


def remove_fake_quant(model: nn.Module) -> None:
    """Remove the quantizers of inputs and outputs; ``bake`` writes the weights' into the weights.

    Call :func:`read_quantization` before: the ranges are lost.
    """
    for module in model.modules():
        for part, hooks in (
            (_INPUTS, module._forward_pre_hooks),
            (_OUTPUTS, module._forward_hooks),
        ):
            if not isinstance(getattr(module, part, None), ActivationFakeQuant):
                continue
            delattr(module, part)
            ours = (_quantize_input, _quantize_output)
            for key in [key for key, hook in hooks.items() if hook in ours]:
                del hooks[key]
