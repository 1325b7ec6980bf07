"""ONNX files: protobuf, external data, and which operators are read."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, listed
from .arity import check_arity
from .constants import Constant
from .graph import Graph
from .nodes import Node

# What protobuf can hold; larger models keep their weights in files of their own.
MAX_FILE = 2**31 - 1
_STANDARD = ("", "ai.onnx")
# Of ONNX Runtime's own operators those that lowering.py takes apart, and activation functions.
_CONTRIBUTED = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    | {"QGemm", "QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearSigmoid", "Gelu", "FastGelu"}
)
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64"},
    **{9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"},
}
_BYTES = {
    **{"float32": 4, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"bool": 1, "float16": 2, "float64": 8, "bfloat16": 2},
}
_EXTERNAL = 1
_SUBGRAPHS = (5, 10)


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file; its weights are not copied before they are asked for.

    Args:
        path: the file. Data outside of it is looked for in its directory and below.

    Raises:
        CheckpointError: the ``onnx`` package is missing, the file is damaged, or its graph has
            operators that are not read.
    """
    model = _parsed(path)
    proto = model.graph
    _refuse_operators(path.name, model)
    check_arity(path.name, model)
    leaves: dict[str, Constant] = {}
    for tensor in proto.initializer:
        leaves[_fresh(tensor.name, leaves, path)] = _constant(tensor, tensor.name, path.parent)
    nodes = []
    for node in proto.node:
        if node.op_type == "Constant" and len(node.output) == 1:
            leaves[_fresh(node.output[0], leaves, path)] = _constant_node(node, path.parent)
        else:
            nodes.append(_node(node))
    inputs = [value.name for value in proto.input if value.name not in leaves]
    outputs = [value.name for value in proto.output]
    named = [tensor.name for tensor in proto.initializer]
    return Graph(path.name, nodes, leaves, inputs, outputs, named)


def _fresh(name: str, leaves: dict[str, Constant], path: Path) -> str:
    if not name or name in leaves:
        raise CheckpointError(
            f"{path.name}: expected tensors with names of their own, got {name!r} again; the file "
            "is damaged"
        )
    return name


def _parsed(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise CheckpointError(
            f"{path.name}: reading ONNX needs the package onnx; pip install sparse-runtime[onnx]"
        ) from error
    size = path.stat().st_size
    if size > MAX_FILE:
        raise CheckpointError(
            f"{path.name}: expected at most {MAX_FILE} bytes, the most that protobuf holds, got "
            f"{size}; save the model with external data"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    # protobuf's own DecodeError, whose class depends on how protobuf is built.
    except Exception as error:
        raise CheckpointError(
            f"{path.name}: not a readable ONNX file ({error}); download it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path.name}: no ONNX graph in it; download it again")
    return model


def _refuse_operators(where: str, model: Any) -> None:
    strange = {
        f"{node.domain}.{node.op_type}"
        for node in model.graph.node
        if node.domain not in _STANDARD
        and not (node.domain == "com.microsoft" and node.op_type in _CONTRIBUTED)
    }
    if strange:
        raise CheckpointError(
            f"{where}: operators that are not read: {listed(strange, 8)}; an optimizer has fused "
            "the layers into them: pass the file from before that step"
        )
    if any(item.type in _SUBGRAPHS for node in model.graph.node for item in node.attribute):
        raise CheckpointError(f"{where}: control flow (If, Loop, Scan) is not read")
    if model.graph.sparse_initializer:
        raise CheckpointError(f"{where}: sparse initializers are not read; save dense ones")


def _node(proto: Any) -> Node:
    scopes = [entry.value for entry in proto.metadata_props if "name_scopes" in entry.key]
    return Node(
        op=proto.op_type,
        name=proto.name,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes=dict(_attributes(proto)),
        scope=_scope(proto.name, scopes),
    )


def _attributes(proto: Any) -> Iterator[tuple[str, Any]]:
    for attribute in proto.attribute:
        # Numbers of AttributeProto.AttributeType.
        fields = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
        if attribute.type in fields:
            value = getattr(attribute, fields[attribute.type])
            yield attribute.name, list(value) if attribute.type > 5 else value


def _scope(name: str, scopes: list[str]) -> str | None:
    """The module that a node belongs to.

    The exporter through torch.export notes the path of modules as a Python list whose last entry is
    the operation; the one through TorchScript calls nodes ``/encoder/layer.0/output/dense/MatMul``.
    """
    if scopes:
        try:
            path = ast.literal_eval(scopes[0])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            path = None
        if isinstance(path, list) and len(path) > 1 and isinstance(path[-2], str):
            return path[-2]
    parts = name.split("/")
    return ".".join(parts[1:-1]) if name.startswith("/") and len(parts) > 2 else None


def _constant_node(proto: Any, directory: Path) -> Constant:
    name = proto.output[0]
    attribute = proto.attribute[0] if proto.attribute else None
    if attribute is not None and attribute.type == 4:
        return _constant(attribute.t, name, directory)
    value = dict(_attributes(proto))
    number = next(iter(value.values()), None)
    is_list = isinstance(number, list) and all(isinstance(part, int | float) for part in number)
    if not (is_list or isinstance(number, int | float)):
        return Constant((), "string", lambda: _unread(name, "string"), frozenset({name}))
    kept = torch.tensor(number)
    dtype = str(kept.dtype).removeprefix("torch.")
    return Constant(tuple(kept.shape), dtype, lambda: kept, frozenset({name}))


def _constant(tensor: Any, name: str, directory: Path) -> Constant:
    shape = tuple(tensor.dims)
    dtype = _DTYPES.get(tensor.data_type)
    if any(size < 0 for size in shape):
        raise CheckpointError(f"{name}: expected sizes of at least 0, got {list(shape)}")
    if dtype is None:
        kind = f"ONNX type {tensor.data_type}"
        return Constant(shape, kind, lambda: _unread(name, kind), frozenset({name}))
    nbytes = math.prod(shape) * _BYTES[dtype]
    if tensor.data_location == _EXTERNAL:
        place = _external(tensor, name, directory, nbytes)
        return Constant(shape, dtype, lambda: _mapped(place, shape, dtype), frozenset({name}))
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise CheckpointError(
                f"{name}: expected {nbytes} bytes for {list(shape)} {dtype}, got "
                f"{len(tensor.raw_data)}; the file is damaged"
            )
        return Constant(
            shape, dtype, lambda: _tensor(tensor.raw_data, shape, dtype), frozenset({name})
        )
    stored = max(
        len(tensor.float_data),
        len(tensor.int32_data),
        len(tensor.int64_data),
        len(tensor.double_data),
    )
    if stored != math.prod(shape):
        raise CheckpointError(
            f"{name}: expected {math.prod(shape)} numbers for {list(shape)}, got {stored}; the "
            "file is damaged"
        )
    return Constant(shape, dtype, lambda: _from_fields(tensor, dtype), frozenset({name}))


def _external(tensor: Any, name: str, directory: Path, nbytes: int) -> tuple[Path, int, int]:
    """(file, offset, bytes) of a tensor whose data lies beside the graph."""
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or set(location) & set("\\\0:"):
        raise CheckpointError(
            f"{name}: expected external data in the model's directory, got {location!r}; the file "
            "could read anything, so it is refused"
        )
    path = directory.joinpath(*parts)
    if not path.is_file():
        raise CheckpointError(f"{name}: its external data {location!r} is missing; download it too")
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", nbytes))
    except ValueError as error:
        raise CheckpointError(f"{name}: offset and length are no numbers; it is damaged") from error
    if length != nbytes or offset < 0 or offset + length > path.stat().st_size:
        raise CheckpointError(
            f"{name}: expected {nbytes} bytes within {location!r} ({path.stat().st_size} bytes), "
            f"got {length} from {offset}; the files do not belong together"
        )
    return path, offset, nbytes


def _mapped(place: tuple[Path, int, int], shape: tuple[int, ...], dtype: str) -> Tensor:
    path, offset, nbytes = place
    # A file cannot be mapped where there is nothing of it.
    data = np.memmap(path, np.uint8, "r", offset, (nbytes,)) if nbytes else b""
    return _tensor(data, shape, dtype)


def _tensor(data: Any, shape: tuple[int, ...], dtype: str) -> Tensor:
    if not math.prod(shape):
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    # A copy: torch writes to what it is given, and protobuf's bytes are not to be written to.
    raw = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return raw.view(getattr(torch, dtype)).reshape(shape)


def _from_fields(tensor: Any, dtype: str) -> Tensor:
    from onnx import numpy_helper

    numbers = numpy_helper.to_array(tensor)
    if dtype == "bfloat16":
        return torch.from_numpy(numbers.astype(np.float32)).bfloat16()
    return torch.from_numpy(numbers.copy())


def _unread(name: str, kind: str) -> Tensor:
    raise CheckpointError(f"{name}: values of {kind} are not read")
