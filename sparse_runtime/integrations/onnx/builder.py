"""Nodes and constants of a graph in the making."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from ...spec import ActivationSpec

# LayerNormalization is one operator since then.
OPSET = 17
_IR_VERSION = 8
_SPLIT = re.compile(r"\.(?!\d)")


class Builder:
    """Collects a graph. Values are names; a node's outputs are named after it.

    Names are those of torch's exporter: the node of a module ``layer.0.output.dense`` is called
    ``/layer.0/output/dense/MatMul``, by which other tools find the module.
    """

    def __init__(self) -> None:
        # Imported here, for the package is an extra.
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def constant(self, name: str, value: Tensor | np.ndarray | float | list[int]) -> str:
        """An initializer; a list is int64, a number float32."""
        if name not in self._constants:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous().numpy()
            elif isinstance(value, list):
                value = np.array(value, np.int64)
            elif isinstance(value, float):
                value = np.array(value, np.float32)
            self._constants[name] = self._onnx.numpy_helper.from_array(value, name)
        return name

    def node(self, op: str, inputs: list[str], module: str, label: str = "", **given: Any) -> str:
        """Add an operation that gives one value, and return the value's name.

        Args:
            op: the operator.
            inputs: names of values.
            module: path of the torch module that it belongs to.
            label: what tells it from others of its type in the module.
            given: attributes.
        """
        return self.nodes(op, inputs, module, label, 1, **given)[0]

    def nodes(
        self, op: str, inputs: list[str], module: str, label: str, count: int, **given: Any
    ) -> list[str]:
        """The same for an operation that gives ``count`` values."""
        scope = f"/{_SPLIT.sub('/', module)}" if module else ""
        name = f"{scope}/{op}{'_' + label if label else ''}"
        outputs = [f"{name}_output_{place}" for place in range(count)]
        self._nodes.append(self._onnx.helper.make_node(op, inputs, outputs, name=name, **given))
        return outputs

    def quantized(self, value: str, spec: ActivationSpec | None, module: str, label: str) -> str:
        """QuantizeLinear and DequantizeLinear on a value; without a quantizer, the value itself."""
        if spec is None:
            return value
        stem = f"{module}.{label}"
        zero_point = np.array(spec.zero_point, np.int8 if spec.dtype == "int8" else np.uint8)
        numbers = [
            self.constant(f"{stem}_scale", spec.scale),
            self.constant(f"{stem}_zero_point", zero_point),
        ]
        stored = self.node("QuantizeLinear", [value, *numbers], module, label)
        return self.node("DequantizeLinear", [stored, *numbers], module, label)

    def model(self, inputs: list[str], outputs: dict[str, tuple[str, list[str | int]]]) -> Any:
        """The finished model.

        Args:
            inputs: names of int64 [batch, sequence] inputs.
            outputs: name -> (value, axes) of float32 outputs.
        """
        helper, types = self._onnx.helper, self._onnx.TensorProto
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"/{name}"))
        axes: list[str | int] = ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self._nodes,
            "sparse_runtime",
            [helper.make_tensor_value_info(name, types.INT64, axes) for name in inputs],
            [
                helper.make_tensor_value_info(name, types.FLOAT, shape)
                for name, (_, shape) in outputs.items()
            ],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="sparse-runtime")
        model.ir_version = _IR_VERSION
        return model
