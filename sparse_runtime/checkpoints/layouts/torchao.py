"""torchao's Int8Tensor in safetensors: parts of a tensor, and what they mean in the metadata.

Source: torchao 0.18, quantization/quantize_/workflows/int8/int8_tensor.py and
prototype/safetensors. ``X.weight`` lies in ``X._weight_qdata`` int8, ``X._weight_scale`` and
``X._weight_zero_point``, one for each block of ``block_size``. Dynamic inputs, symmetric: ``scale =
max|x| / 127.5``, at least 2**-23, and ``q = clamp(round_half_even(x * (1 / scale)), -128, 127)``.
What is packed divides by the scale: ties, such as the largest magnitude of a token, may fall on the
other side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...spec import DYNAMIC_ACTIVATIONS, ActivationSpec, ValueSpec
from ..draft import FLOATS, Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..naming import kind_of, normalise
from ..options import one_of
from ..quantized import QuantizedLinear, QuantizedValues
from .base import Layout
from .scales import check_layout, load_scales, load_zero_points, static_int8

_PLAIN, _INT8 = "Tensor", "Int8Tensor"
_ADVICE = {
    "Float8Tensor": "float8 products have no counterpart on the CPU",
    "MXTensor": "blocks of microscaled floats are not supported",
    "NVFP4Tensor": "blocks of microscaled floats are not supported",
}
_OTHER_ADVICE = "its integers are not laid out in rows of int8"
_REQUIRED = {"qdata", "scale"}
_OPTIONAL = {"zero_point", "act_quant_scale", "act_quant_zero_point"}
_KEYS = {"block_size", "dtype", "act_quant_kwargs", "reduce_range"}
_INPUT_KEYS = {"granularity", "mapping_type", "reduce_range"}
_SYMMETRIC = {"_type": "MappingType", "_data": "SYMMETRIC"}
_PER_ROW = {"_type": "PerRow", "_data": {"dim": -1}}


def _recognise(draft: Draft) -> str | None:
    section = draft.config.get("quantization_config")
    if not isinstance(section, Mapping) or section.get("quant_method") != "torchao":
        return None
    return "quant_method of config.json" if draft.names(r".+\._weight_\w+") else None


def _finalise(draft: Draft) -> None:
    described = _described(draft)
    parts = draft.names(r".+\._weight_\w+")
    modules = list(dict.fromkeys(name.rpartition("._weight_")[0] for name in parts))
    for module in modules:
        tensor = described.get(f"{module}.weight")
        if tensor is None:
            raise CheckpointError(
                f"{draft.where}: {module}._weight_* are parts of a torchao tensor, and the "
                f"metadata of the file does not say of which kind; save the model again with "
                "save_pretrained, as safetensors"
            )
        _read_module(draft, module, tensor)
    missing = {
        name
        for name, tensor in described.items()
        if tensor["_type"] == _INT8 and name.removesuffix(".weight") not in modules
    }
    if missing:
        raise CheckpointError(
            f"{draft.where}: the metadata describes {listed(missing)}, and the file does not hold "
            "them; the file is incomplete"
        )
    for (inputs, scales), count in Counter(
        (_inputs_in_words(draft.linears[module]), draft.linears[module].values.scales)
        for module in modules
        if module in draft.linears
    ).items():
        draft.steps.append(f"{count} modules stay integers: int8, scales {scales}, {inputs}")
    del draft.config["quantization_config"]


def _inputs_in_words(linear: QuantizedLinear) -> str:
    spec = linear.activations
    if spec is None:
        return "inputs in floats"
    # Stated in the report, for the integers may differ by one from torchao's.
    ties = "" if spec.narrow_range and spec.scheme == "dynamic" else ", ties apart"
    return f"inputs {spec.scheme} {spec.dtype}{ties}"


def _described(draft: Draft) -> dict[str, dict[str, Any]]:
    """What the metadata says of each tensor, by today's name."""
    metadata = draft.container.metadata()
    found: dict[str, dict[str, Any]] = {}
    for name, text in metadata.items():
        if name in ("format", "tensor_names"):
            continue
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            continue  # of another writer
        if isinstance(data, dict) and isinstance(data.get("_type"), str):
            found[name] = data
    return {new: found[old] for new, old in normalise(found).stored.items()}


def _read_module(draft: Draft, module: str, described: Mapping[str, Any]) -> None:
    kind, where = described["_type"], f"{module}.weight"
    if kind != _INT8:
        raise CheckpointError(
            f"{where}: expected torchao's {_INT8}, got its {kind}: "
            f"{_ADVICE.get(kind, _OTHER_ADVICE)}; quantize with "
            "Int8DynamicActivationInt8WeightConfig or Int8WeightOnlyConfig, or convert the float "
            "checkpoint"
        )
    data, names = _checked(described, where)
    tensors = {name: draft.take(f"{module}._weight_{name}") for name in sorted(names)}
    values = tensors["qdata"]
    if values.dtype != "int8" or len(values.shape) != 2:
        raise CheckpointError(
            f"{module}._weight_qdata: expected an int8 matrix, got {values.dtype} "
            f"{list(values.shape)}; the file is damaged"
        )
    shape = (values.shape[0], values.shape[1])
    scales, grid = _scales(data["block_size"], shape, where)
    check_layout(f"{module}._weight_scale", tensors["scale"], (grid,), FLOATS)
    zero_points = _zero_points(module, tensors.get("zero_point"), grid)
    load = _loader(module, tensors, zero_points)
    if kind_of(where, shape) == "embedding":
        draft.put(where, shape, torch.float32, lambda: _dequantized(load(), shape, grid))
        draft.steps.append(f"{where} = (value - zero point) x scale, in float32")
        return
    linear = QuantizedLinear(
        shape=shape,
        values=ValueSpec.parse("int8", scales, zero_points=zero_points is not None),
        activations=_activations(draft, module, data["act_quant_kwargs"], tensors),
        nbytes=sum(part.nbytes for part in tensors.values()),
        load=load,
    )
    draft.put_linear(module, linear)


def _checked(described: Mapping[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
    """(attributes, names of the parts) of an Int8Tensor."""
    data, names = described.get("_data"), described.get("_tensor_data_names")
    known = isinstance(data, dict) and data.keys() <= _KEYS and "block_size" in data
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(data, dict) or not isinstance(names, list) or not (known and named):
        raise CheckpointError(
            f"{where}: expected metadata of an {_INT8} of torchao 0.18, got {described!r:.300}"
        )
    unknown = set(names) - _REQUIRED - _OPTIONAL
    if unknown:
        raise CheckpointError(
            f"{where}: {listed(unknown)} of the {_INT8} is not supported; an activation scaled "
            "beforehand (AWQ, SmoothQuant) must be folded into the weights first"
        )
    return {"act_quant_kwargs": None, **data}, _REQUIRED | set(names)


def _scales(block: Any, shape: tuple[int, int], where: str) -> tuple[str, tuple[int, int]]:
    """(scale string, shape of the scales) of a block size."""
    rows, cols = shape
    fits = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
    if fits and block == [rows, cols]:
        return "tensor", (1, 1)
    if fits and block == [1, cols]:
        return "row", (rows, 1)
    if fits and block[0] == 1 and block[1] > 0 and cols % block[1] == 0:
        return f"group:{block[1]}", (rows, cols // block[1])
    raise CheckpointError(
        f"{where}: expected a scale for the tensor {[rows, cols]}, for each row {[1, cols]} or for "
        f"groups of a row, got blocks of {block!r}"
    )


def _zero_points(module: str, stored: LazyTensor | None, grid: tuple[int, int]) -> Tensor | None:
    """int8 zero points in the grid of scales, or None where all are 0."""
    if stored is None:
        return None
    name = f"{module}._weight_zero_point"
    check_layout(name, stored, (grid,), ("int8", "int32", "int64"))
    zero_points = load_zero_points(name, stored)
    return zero_points if bool(zero_points.any()) else None


def _loader(
    module: str, tensors: Mapping[str, LazyTensor], zero_points: Tensor | None
) -> Callable[[], QuantizedValues]:
    def load() -> QuantizedValues:
        scales = load_scales(f"{module}._weight_scale", tensors["scale"])
        zeros = None if zero_points is None else zero_points.flatten()
        return QuantizedValues(tensors["qdata"].load(), scales.flatten(), zeros)

    return load


def _dequantized(stored: QuantizedValues, shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    def by_value(numbers: Tensor) -> Tensor:
        rows, cols = (
            torch.arange(n) // (n // shares) for n, shares in zip(shape, grid, strict=True)
        )
        return numbers.view(grid)[rows][:, cols]

    floats = stored.weight.to(torch.float32)
    if stored.zero_points is not None:
        floats = floats - by_value(stored.zero_points)
    return floats * by_value(stored.scales)


def _activations(
    draft: Draft, module: str, described: Any, tensors: Mapping[str, LazyTensor]
) -> ActivationSpec | None:
    if described is None:
        return None
    data = described.get("_data") if isinstance(described, dict) else None
    if not isinstance(data, dict) or data.keys() != _INPUT_KEYS:
        raise CheckpointError(
            f"{module}.weight: expected act_quant_kwargs of torchao 0.18, got {described!r:.300}"
        )
    if data["reduce_range"] is False and data["mapping_type"] == _SYMMETRIC:
        if "act_quant_scale" in tensors:
            return _static(module, tensors)
        if data["granularity"] == _PER_ROW:
            return ActivationSpec("dynamic", "int8", narrow_range=False)
    chosen = draft.options.ask(
        "activations",
        one_of("none", *DYNAMIC_ACTIVATIONS),
        f"{draft.where}: {module} has activations that cannot be computed here as torchao computes "
        f"them ({json.dumps(data):.200}); 'none' multiplies the weights with float activations, "
        "'dynamic' (uint8) and 'symmetric' (int8) quantize each token by itself",
        "none",
    )
    return DYNAMIC_ACTIVATIONS.get(chosen)


def _static(module: str, tensors: Mapping[str, LazyTensor]) -> ActivationSpec:
    shapes: tuple[tuple[int, ...], ...] = ((1, 1), (1,), ())
    zero_point = 0
    if "act_quant_zero_point" in tensors:
        name = f"{module}._weight_act_quant_zero_point"
        check_layout(name, tensors["act_quant_zero_point"], shapes, ("int8", "int32", "int64"))
        zero_point = int(load_zero_points(name, tensors["act_quant_zero_point"]))
    name = f"{module}._weight_act_quant_scale"
    check_layout(name, tensors["act_quant_scale"], shapes, FLOATS)
    return static_int8(name, tensors["act_quant_scale"], zero_point)


LAYOUT = Layout("torchao", _recognise, _finalise)
