"""Float weights that are integers times scales, and ``quantization.safetensors`` that states them.

What ``sparse_runtime.compress`` writes: a plain Hugging Face directory that transformers opens with
its quantized weights as floats, and beside it, for each quantized module X, ``X.weight_scale``
float32 [number of scales], and under the key X of the metadata a JSON object with ``values``
("int8" or "int4"), ``scales`` ("tensor", "row", "chunk:R" or "group:G"), ``activations`` and
``outputs`` (as in a packed model, or null).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...spec import INTEGER_RANGES, ActivationSpec, LinearSpec, Structure, ValueSpec
from ..containers import SafetensorsFile
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import finite
from ..quantized import QuantizedLinear, QuantizedValues
from .base import Layout
from .fake_quant_linear import check_float32
from .scales import check_layout, load_scales

FILE = "quantization.safetensors"
FORMAT = {"format": "sparse_runtime.quantization", "version": "1"}
SCALE = "weight_scale"

_KEYS = {"values", "scales", "activations", "outputs"}
_ADVICE = f"write the checkpoint again, or remove {FILE} to convert the floats as they are"


def _recognise(draft: Draft) -> str | None:
    return f"{FILE} beside the weights" if (draft.directory / FILE).is_file() else None


def _finalise(draft: Draft) -> None:
    file = SafetensorsFile(draft.directory / FILE)
    stated = _stated(file.metadata())
    scales = {f"{module}.{SCALE}" for module in stated}
    if scales != set(file.names()) or not stated:
        raise CheckpointError(
            f"{FILE}: expected one {SCALE} a module of its metadata, got modules "
            f"{listed(stated)} and tensors {listed(file.names())}; {_ADVICE}"
        )
    for module, data in stated.items():
        name = f"{module}.{SCALE}"
        scale = LazyTensor(file.shape(name), file.dtype(name), _loader(file, name))
        _replace(draft, module, data, scale)
    for what, count in Counter(_in_words(draft.linears[module]) for module in stated).items():
        draft.steps.append(f"{count} modules are integers, checked against their scales: {what}")


def _loader(file: SafetensorsFile, name: str) -> Any:
    return lambda: file.load(name)


def _stated(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What the metadata says of each module."""
    found = {key: metadata.get(key) for key in FORMAT}
    if found != FORMAT:
        raise CheckpointError(
            f"{FILE}: expected {FORMAT} in its metadata, got {found}; it was written by a later "
            "release or another program: update sparse-runtime, or remove the file to convert the "
            "floats as they are"
        )
    stated = {}
    for module, text in metadata.items():
        if module in FORMAT:
            continue
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{FILE}: {module}: expected JSON ({error}); {_ADVICE}"
            ) from error
        if not isinstance(data, dict) or set(data) != _KEYS:
            raise CheckpointError(
                f"{FILE}: {module}: expected an object with {listed(_KEYS)}, got {text[:80]!r}; "
                f"{_ADVICE}"
            )
        stated[module] = data
    return stated


def _replace(draft: Draft, module: str, data: Mapping[str, Any], scale: LazyTensor) -> None:
    """Put integers in the place of a layer's floats."""
    name = f"{module}.weight"
    if name not in draft.tensors:
        raise CheckpointError(
            f"{FILE}: {module}: the weights have no {name} in floats; it belongs to another model"
        )
    weight = draft.take(name)
    check_float32(name, weight)
    try:
        spec = _spec(weight.shape, data)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{FILE}: {module}: {error}; {_ADVICE}") from error
    check_layout(f"{module}.{SCALE}", scale, ((spec.scale_count,),), ("float32",))
    draft.put_linear(
        module,
        QuantizedLinear(
            shape=spec.shape,
            values=spec.values,
            activations=spec.activations,
            nbytes=weight.nbytes + scale.nbytes,
            load=lambda: _integers(name, weight.load(), scale, spec.values),
            outputs=spec.outputs,
        ),
    )


def _spec(shape: tuple[int, ...], data: Mapping[str, Any]) -> LinearSpec:
    activations, outputs = data["activations"], data["outputs"]
    values = ValueSpec.parse(data["values"], data["scales"])
    if not values.is_integer:
        raise ValueError(f"values {values.dtype!r}: expected 'int8' or 'int4'")
    return LinearSpec(
        shape,  # type: ignore[arg-type]  # LinearSpec refuses other than two sizes
        Structure("dense"),
        values,
        None if activations is None else ActivationSpec.from_dict(activations),
        None if outputs is None else ActivationSpec.from_dict(outputs, "outputs"),
    )


def _integers(name: str, weight: Tensor, scale: LazyTensor, values: ValueSpec) -> QuantizedValues:
    """The integers, unless a weight is not one of them times its scale."""
    scales = load_scales(f"{name.removesuffix('weight')}{SCALE}", scale)
    spread = values.spread(scales, weight.shape[0], weight.shape[1])
    low, high = INTEGER_RANGES[values.dtype]
    q = torch.round(finite(name, weight) / spread).clamp_(low, high)
    wrong = q * spread != weight
    if bool(wrong.any()):
        row, col = (int(i) for i in wrong.nonzero()[0])
        raise CheckpointError(
            f"{name}: expected integers times the scales that {FILE} states, got "
            f"{weight[row, col].item():g} at [{row}, {col}] with scale "
            f"{spread.expand_as(weight)[row, col].item():g}; the weights were changed after they "
            f"were quantized: {_ADVICE}"
        )
    return QuantizedValues(q.to(torch.int8), scales)


def _in_words(linear: QuantizedLinear) -> str:
    inputs = linear.activations
    words = "floats" if inputs is None else f"{inputs.scheme} {inputs.dtype}"
    again = "" if linear.outputs is None else ", outputs requantized"
    return f"{linear.values.dtype}, scales {linear.values.scales}, inputs {words}{again}"


LAYOUT = Layout("stated quantization", _recognise, _finalise)
