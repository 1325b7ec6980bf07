"""Quantization-aware training of SparseML, as in the oBERT checkpoints.

SparseML wraps a linear layer L in torch's QuantWrapper: ``L.module.weight``, ``L.module.bias``,
``L.module.weight_fake_quant.*``; ``L.quant.activation_post_process.*`` quantizes its input, and
``L.module.activation_post_process.*``, where it is there, its output. Layers whose input is left in
floats are not wrapped. Embedding tables have ``weight_fake_quant`` and, where their output is
quantized too, ``activation_post_process``. Every layer is evaluated as in the training forward: its
bias is not rounded.

Source: neuralmagic/sparseml, pytorch/sparsification/quantization/{helpers,quantize}.py; Kurtic et
al., The Optimal BERT Surgeon, arXiv 2203.07259.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ...spec import ActivationSpec
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..naming import kind_of
from ..numbers import finite
from . import sparseml_attention
from .base import Layout
from .fake_quant import INT8, UINT8, Quantizer, activation_type, take_quantizer, weight_limits
from .fake_quant_linear import check_float32, integer_linear

_WRAPPED = ".module"
_OUTPUT = "activation_post_process"
_STUBS = r"(quant|module|(input|output)_quant_stubs\.\d+)"
_GROUPS = rf".+\.(weight_fake_quant|{_STUBS}\.{_OUTPUT})"
_LIMITS = {"uint8": UINT8, "int8": INT8}


def _recognise(draft: Draft) -> str | None:
    found = draft.names(rf"{_GROUPS}\..+")
    return f"{len(found)} tensors {listed(found, 2)}" if found else None


def _finalise(draft: Draft) -> None:
    done: Counter[str] = Counter()
    for module in _quantized_modules(draft):
        weight = draft.tensors.get(f"{module}.weight")
        if weight is not None and kind_of(f"{module}.weight", weight.shape) == "embedding":
            done += _table(draft, module)
        else:
            done += _linear(draft, module)
    done += sparseml_attention.take_products(draft)
    _refuse_others(draft)
    draft.steps += [f"{what} in {count} modules" for what, count in done.items()]


def _quantized_modules(draft: Draft) -> list[str]:
    """Names that weights lie under, such as "classifier.module", in the file's order."""
    inside = draft.names(r".+\.weight_fake_quant\..+") + draft.names(r".+\.module\.weight")
    return list(dict.fromkeys(name.partition(".weight")[0] for name in inside))


def _linear(draft: Draft, module: str) -> Counter[str]:
    """Put integers, or floats where no quantizer is on, in the place of a linear layer."""
    name = module.removesuffix(_WRAPPED)
    weight = draft.take(f"{module}.weight")
    quantizer = take_quantizer(draft, f"{module}.weight_fake_quant")
    inputs = _activations(draft, f"{name}.quant.{_OUTPUT}") if name != module else None
    outputs = _activations(draft, f"{module}.{_OUTPUT}")
    if f"{module}.bias" in draft.tensors:
        bias = draft.take(f"{module}.bias")
        draft.put(f"{name}.bias", bias.shape, getattr(torch, bias.dtype), bias.load)
    if quantizer is None and inputs is None and outputs is None:
        draft.put(f"{name}.weight", weight.shape, getattr(torch, weight.dtype), weight.load)
        return Counter({"no quantizer switched on: floats kept": 1})
    if quantizer is None or (outputs is not None and inputs is None):
        parts = {"weight": quantizer, "input": inputs, "output": outputs}
        raise CheckpointError(
            f"{name}: quantizes its {listed(p for p, q in parts.items() if q is not None)} and not "
            f"its {listed(p for p, q in parts.items() if q is None)}; expected quantized weights, "
            "with quantized inputs where outputs are quantized; other layers cannot be represented"
        )
    limits = weight_limits(draft, quantizer)
    draft.put_linear(
        name, integer_linear(f"{module}.weight", weight, quantizer, limits, inputs, outputs)
    )
    low, high = limits
    done = Counter({f"weight = clamp(round(weight / weight scale), {low}, {high})": 1})
    done[f"inputs static {inputs.dtype}" if inputs else "inputs not quantized"] += 1
    if outputs is not None:
        done[f"outputs requantized to {outputs.dtype}"] += 1
    return done


def _table(draft: Draft, module: str) -> Counter[str]:
    """Put the floats that its quantizers leave of an embedding table in its place."""
    name = f"{module}.weight"
    weight = draft.take(name)
    check_float32(name, weight)
    steps: list[tuple[Quantizer, tuple[int, int]]] = []
    done: Counter[str] = Counter()
    parts = {"weight_fake_quant": "table", _OUTPUT: "rows looked up"}
    for group, what in parts.items():
        quantizer = take_quantizer(draft, f"{module}.{group}")
        if quantizer is not None:
            dtype = activation_type(draft, quantizer)
            quantizer.static(dtype)  # refuses a zero point outside of the type
            steps.append((quantizer, _LIMITS[dtype]))
            done[f"embedding {what} = dequantized {dtype}"] += 1
    draft.put(name, weight.shape, torch.float32, lambda: _dequantized(name, weight, steps))
    return done


def _dequantized(
    name: str, weight: LazyTensor, steps: list[tuple[Quantizer, tuple[int, int]]]
) -> Tensor:
    # What quantizes a looked-up row quantizes the table: it works on each number by itself.
    table = finite(name, weight.load())
    for quantizer, limits in steps:
        table = quantizer.fake(table, limits)
    return table


def _activations(draft: Draft, group: str) -> ActivationSpec | None:
    quantizer = take_quantizer(draft, group)
    return None if quantizer is None else quantizer.static(activation_type(draft, quantizer))


def _refuse_others(draft: Draft) -> None:
    """Raise CheckpointError for quantizers that are on where nothing can take them."""
    groups = {name.rpartition(".")[0] for name in draft.names(rf".+\.{_OUTPUT}\.scale")}
    on = {group for group in sorted(groups) if take_quantizer(draft, group) is not None}
    if on:
        raise CheckpointError(
            f"{draft.where}: expected quantizers of linear layers, embeddings and the products of "
            f"attention, got {listed(on)}; a layer that quantizes there cannot be represented"
        )
    left = draft.names(rf"{_GROUPS}\..+|.+\.{_OUTPUT}\..+")
    if left:
        raise CheckpointError(
            f"{draft.where}: expected whole groups of quantizer tensors, got {listed(left)} alone; "
            "the file is incomplete, or in a form of SparseML that is not supported"
        )


LAYOUT = Layout("SparseML QAT", _recognise, _finalise)
