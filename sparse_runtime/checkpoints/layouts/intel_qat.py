"""Quantization-aware training of Intel's Model-Compression-Research: Prune Once For All.

Under each quantized linear layer lie ``weight``, ``bias``, ``_step``, ``fake_quant_enabled`` and
the groups ``weight_fake_quant``, ``input_fake_quant`` and ``output_fake_quant``. Weights are int8
in -128..127, symmetric, inputs and outputs uint8, each with one scale for the tensor; outputs are
requantized where ``requantize`` is 1. In evaluation the library multiplies integers and rounds the
bias to a multiple of input scale x weight scale, which the training forward does not.

Source: IntelLabs/Model-Compression-Research-Package, quantization/qat.py (QuantizedLinear);
Zafrir et al., Prune Once for All, arXiv 2111.05754.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import finite
from .base import Layout
from .fake_quant import INT8, Quantizer, flag, take_quantizer
from .fake_quant_linear import check_float32, integer_linear

# The library's bounds on a bias of 32 bits.
_BIAS_LIMITS = (-(2.0**31 - 1), 2.0**31 - 2)
_OUTPUT_FLAGS = ("requantize", "quant_enabled")


@dataclass(frozen=True)
class _Groups:
    """The quantizers of one layer that is switched on."""

    weight: Quantizer
    inputs: Quantizer
    outputs: Quantizer | None


def _recognise(draft: Draft) -> str | None:
    found = draft.names(r".+\.((input|output)_fake_quant\..+|_step)")
    return f"{len(found)} tensors {listed(found, 2)}" if found else None


def _finalise(draft: Draft) -> None:
    modules = draft.modules("_step")
    if not modules:
        raise CheckpointError(
            f"{draft.where}: expected '_step' in each quantized layer, got "
            f"{listed(draft.names('.+_fake_quant.*'), 2)} without it; the file is incomplete, or "
            "written by another library"
        )
    inside = draft.names(r".+\.(input|output)_fake_quant\..+")
    modules += [re.split(r"\.(?:input|output)_fake_quant\.", name)[0] for name in inside]
    modules = list(dict.fromkeys(modules))
    floats, requantized = [], []
    for module in modules:
        groups = _take_groups(draft, module)
        if groups is None:
            floats.append(module)
            continue
        if groups.outputs is not None:
            requantized.append(module)
        _replace(draft, module, groups)
    _report(draft, len(modules) - len(floats), len(requantized), floats)


def _take_groups(draft: Draft, module: str) -> _Groups | None:
    """The layer's quantizers, or None where quantization is switched off.

    Raises:
        CheckpointError: a tensor is missing, or the switches contradict each other.
    """
    draft.take(f"{module}._step")
    name = f"{module}.fake_quant_enabled"
    enabled = flag(name, draft.take(name))
    requantize, quant_enabled = (
        flag(name, draft.take(name))
        for name in (f"{module}.output_fake_quant.{part}" for part in _OUTPUT_FLAGS)
    )
    weight = take_quantizer(draft, f"{module}.weight_fake_quant")
    inputs = take_quantizer(draft, f"{module}.input_fake_quant")
    outputs = take_quantizer(draft, f"{module}.output_fake_quant")
    switches = {
        "weight_fake_quant": (weight is not None, enabled),
        "input_fake_quant": (inputs is not None, enabled),
        "output_fake_quant": (outputs is not None, enabled and requantize),
        "output_fake_quant.quant_enabled": (quant_enabled, enabled),
    }
    wrong = [part for part, (found, expected) in switches.items() if found != expected]
    if wrong:
        raise CheckpointError(
            f"{module}: fake_quant_enabled is {int(enabled)} and requantize {int(requantize)}, but "
            f"{listed(wrong)} is missing or says otherwise; the library sets them together, and "
            "evaluates a layer with only a part of its quantizers to no meaningful number"
        )
    if weight is None or inputs is None:
        return None
    if weight.zero_point != 0:
        raise CheckpointError(
            f"{weight.name}.zero_point: expected 0, for weights are symmetric, got "
            f"{weight.zero_point}; the file is damaged"
        )
    return _Groups(weight, inputs, outputs)


def _replace(draft: Draft, module: str, groups: _Groups) -> None:
    """Put integers in the place of the layer's floats."""
    weight = draft.take(f"{module}.weight")
    draft.put_linear(
        module,
        integer_linear(
            f"{module}.weight",
            weight,
            groups.weight,
            INT8,
            activations=groups.inputs.static("uint8"),
            outputs=None if groups.outputs is None else groups.outputs.static("uint8"),
        ),
    )
    name = f"{module}.bias"
    if name in draft.tensors:
        bias = draft.take(name)
        check_float32(name, bias)
        draft.put(name, bias.shape, torch.float32, lambda: _rounded(name, bias, groups))


def _rounded(name: str, bias: LazyTensor, groups: _Groups) -> Tensor:
    """A bias as the 32-bit integer that is added to the sums, times their scale."""
    scale = torch.tensor(groups.inputs.scale) * torch.tensor(groups.weight.scale)
    integers = torch.round(finite(name, bias.load()) * (1 / scale)).clamp_(*_BIAS_LIMITS)
    return integers * scale


def _report(draft: Draft, integers: int, requantized: int, floats: list[str]) -> None:
    if integers:
        draft.steps += [
            f"weight = clamp(round(weight / weight scale), -128, 127) in {integers} linear layers, "
            "inputs static uint8",
            f"bias rounded to multiples of input scale x weight scale in {integers} linear layers, "
            "as the library evaluates",
            f"outputs requantized to uint8 in {requantized} linear layers; in "
            f"{integers - requantized}, whose requantize is 0, the output scale was left out",
        ]
    if floats:
        draft.steps.append(
            f"quantizers of {len(floats)} linear layers left out, fake_quant_enabled is 0: "
            f"{listed(floats)} stay floats"
        )


LAYOUT = Layout("Model-Compression-Research QAT", _recognise, _finalise)
