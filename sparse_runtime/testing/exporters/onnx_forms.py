"""Quantized ONNX graphs in the forms of other writers, made of those that export_onnx writes.

Each function takes an ``onnx.ModelProto`` and returns a new one that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# The shift between int8 and uint8.
_MIDDLE = 128


@dataclass(frozen=True)
class _Product:
    """A linear layer: its input's integers, scale and zero point by name, and its own numbers."""

    integers: str
    scale: str
    zero_point: str
    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    output: str


def sparseml_folded(model: Any) -> Any:
    """Static layers as SparseML folds them: MatMulInteger, Add (int32 bias), Cast and Mul.

    Weights are uint8 with zero point 128, so that a pruned weight is 128 and not 0; the graph
    states the product of both scales alone.
    """
    from onnx import helper

    def write(graph: _Rewriter, layer: _Product) -> list[Any]:
        out = layer.output
        scale = np.float32(graph.value(layer.scale)) * layer.weight_scale
        weight = (layer.weight.astype(np.int16) + _MIDDLE).astype(np.uint8)
        names = {
            "weight": graph.add(f"{out}_weight_quantized", weight),
            "middle": graph.add(f"{out}_weight_zero_point", np.array(_MIDDLE, np.uint8)),
            "bias": graph.add(f"{out}_bias", np.rint(layer.bias / scale).astype(np.int32)),
            "scale": graph.add(f"{out}_rescale", scale),
        }
        inputs = [layer.integers, names["weight"], layer.zero_point, names["middle"]]
        return [
            helper.make_node("MatMulInteger", inputs, [f"{out}_sum"], name=f"{out}_quant"),
            helper.make_node("Add", [f"{out}_sum", names["bias"]], [f"{out}_biased"]),
            helper.make_node("Cast", [f"{out}_biased"], [f"{out}_float"], to=1),
            helper.make_node("Mul", [f"{out}_float", names["scale"]], [out]),
        ]

    return _Rewriter(model).static(write)


def matmul_integer_to_float(model: Any) -> Any:
    """Static layers as ONNX Runtime fuses them: com.microsoft.MatMulIntegerToFloat."""
    from onnx import helper

    def write(graph: _Rewriter, layer: _Product) -> list[Any]:
        out = layer.output
        zero = np.zeros(layer.weight_scale.shape, np.int8)
        inputs = [
            layer.integers,
            graph.add(f"{out}_weight_quantized", layer.weight),
            layer.scale,
            graph.add(f"{out}_weight_scale", layer.weight_scale),
            layer.zero_point,
            graph.add(f"{out}_weight_zero_point", zero),
            graph.add(f"{out}_bias", layer.bias),
        ]
        name = f"{out}_fused"
        domain = "com.microsoft"
        return [helper.make_node("MatMulIntegerToFloat", inputs, [out], name=name, domain=domain)]

    return _Rewriter(model).static(write)


def dynamic_quantize_matmul(model: Any) -> Any:
    """Dynamic layers as ONNX Runtime fuses them: com.microsoft.DynamicQuantizeMatMul."""
    from onnx import helper

    graph = _Rewriter(model)
    for sums in [node for node in graph.nodes if node.op_type == "MatMulInteger"]:
        stored, weight = sums.input[:2]
        quantizer = graph.producer(stored)
        floats = graph.reader(graph.reader(sums.output[0]).output[0])
        scales = graph.producer(floats.input[1])
        bias = graph.reader(floats.output[0])
        zero = graph.add(f"{weight}_zero", np.zeros(graph.value(weight).shape[1], np.int8))
        parameter = next(name for name in bias.input if name != floats.output[0])
        inputs = [quantizer.input[0], weight, scales.input[1], zero, parameter]
        fused = helper.make_node(
            "DynamicQuantizeMatMul", inputs, list(bias.output), domain="com.microsoft"
        )
        fused.name = f"{sums.name}_fused"
        graph.replace(bias, [fused])
    return graph.finished()


class _Rewriter:
    """A graph whose nodes are exchanged one by one."""

    def __init__(self, model: Any) -> None:
        from onnx import ModelProto, numpy_helper

        self._helper = numpy_helper
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self.nodes: list[Any] = list(self._model.graph.node)
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def producer(self, value: str) -> Any:
        return next(node for node in self.nodes if value in node.output)

    def reader(self, value: str) -> Any:
        return next(node for node in self.nodes if value in node.input)

    def value(self, name: str) -> np.ndarray:
        return np.asarray(self._helper.to_array(self._constants[name]))

    def add(self, name: str, value: np.ndarray) -> str:
        self._constants[name] = self._helper.from_array(np.asarray(value), name)
        return name

    def replace(self, old: Any, new: list[Any]) -> None:
        place = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def static(self, write: Callable[[_Rewriter, _Product], list[Any]]) -> Any:
        """Exchange every linear layer with a static input, bias included."""
        for product in [node for node in self.nodes if node.op_type == "MatMul"]:
            makers = {name: node for node in self.nodes for name in node.output}
            left, right = (makers.get(name) for name in product.input)
            if left is None or right is None:
                continue
            if {left.op_type, right.op_type} != {"DequantizeLinear"}:
                continue
            if right.input[0] not in self._constants:
                continue
            adding = self.reader(product.output[0])
            bias = next(name for name in adding.input if name != product.output[0])
            layer = _Product(
                integers=left.input[0],
                scale=left.input[1],
                zero_point=left.input[2],
                weight=self.value(right.input[0]),
                weight_scale=self.value(right.input[1]),
                bias=self.value(bias),
                output=adding.output[0],
            )
            self.replace(adding, write(self, layer))
        return self.finished()

    def finished(self) -> Any:
        """The model with the nodes and tensors that its outputs depend on."""
        from onnx import helper

        graph = self._model.graph
        wanted, kept = {output.name for output in graph.output}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        tensors = [tensor for name, tensor in self._constants.items() if name in wanted]
        nodes = kept[::-1]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        if any(node.domain == "com.microsoft" for node in nodes):
            self._model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return self._model
