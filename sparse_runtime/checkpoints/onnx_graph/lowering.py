"""Quantized operators taken apart: every graph becomes floats between Quantize and Dequantize.

Sources: the ONNX operators QLinearMatMul, MatMulInteger and DynamicQuantizeLinear; ONNX Runtime's
contributed operators (docs/ContribOperators.md); SparseML's folded exports, whose integer products
are followed by Add (int32 bias), Cast and Mul.

A dynamically quantized input becomes ``DynamicQDQ``, an operator of this module alone: what
DynamicQuantizeLinear makes of a tensor, as floats again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError
from .constants import Constant
from .graph import Graph, without_dead_nodes
from .nodes import Node

DYNAMIC = "DynamicQDQ"
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_UNARY = {"QLinearSoftmax": "Softmax", "QLinearSigmoid": "Sigmoid"}
# float32 products of scales, computed in another order, differ by rounding.
_SAME_SCALE = 1e-5


def lowered(graph: Graph) -> Graph:
    """The graph without quantized operators, nodes that no output depends on left out.

    Raises:
        CheckpointError: integers are used in a way that is none of the known ones.
    """
    lowering = _Lowering(graph)
    nodes = without_dead_nodes(lowering.nodes(), graph.outputs)
    return Graph(graph.where, nodes, graph.leaves | lowering.leaves, graph.inputs, graph.outputs)


@dataclass(frozen=True)
class _Chain:
    """MatMulInteger and what makes floats of its result."""

    bias: str
    scale: str
    nodes: tuple[Node, ...]


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.leaves: dict[str, Constant] = {}
        self._replaced: set[int] = set()

    def nodes(self) -> list[Node]:
        """The new nodes, in order; those without a use are still among them."""
        rules: dict[str, Callable[[Node], Iterable[Node]]] = {
            "QLinearMatMul": self._qlinear_matmul,
            "QGemm": self._qgemm,
            "MatMulInteger": self._matmul_integer,
            "MatMulIntegerToFloat": self._matmul_integer_to_float,
            "DynamicQuantizeMatMul": self._dynamic_quantize_matmul,
            **dict.fromkeys(_BINARY, self._binary),
            **dict.fromkeys(_UNARY, self._unary),
        }
        made: list[Node] = []
        for node in self._graph.nodes:
            if id(node) in self._replaced:
                continue
            made.extend(rules[node.op](node) if node.op in rules else (node,))
        return made

    def _qlinear_matmul(self, node: Node) -> Iterable[Node]:
        a, b, y = f"{node.outputs[0]}:a", f"{node.outputs[0]}:b", f"{node.outputs[0]}:y"
        yield _dequantize(node.inputs[0:3], a)
        yield _dequantize(node.inputs[3:6], b, axis=1)
        yield replace(node, op="MatMul", inputs=(a, b), outputs=(y,))
        yield _quantize(node, y, node.inputs[6:8])

    def _qgemm(self, node: Node) -> Iterable[Node]:
        out = node.outputs[0]
        a, b, c, y = (f"{out}:{part}" for part in "abcy")
        by_row = bool(node.attributes.get("transB", 0))
        yield _dequantize(node.inputs[0:3], a)
        yield _dequantize(node.inputs[3:6], b, axis=0 if by_row else 1)
        inputs: tuple[str, ...] = (a, b)
        if node.input(6):
            scale = self._times(node.inputs[1], node.inputs[4], f"{out}:c_scale")
            yield _dequantize((node.inputs[6], scale), c, axis=0)
            inputs = (a, b, c)
        if not node.input(7):
            yield replace(node, op="Gemm", inputs=inputs)
            return
        yield replace(node, op="Gemm", inputs=inputs, outputs=(y,))
        yield _quantize(node, y, node.inputs[7:9])

    def _binary(self, node: Node) -> Iterable[Node]:
        a, b, y = f"{node.outputs[0]}:a", f"{node.outputs[0]}:b", f"{node.outputs[0]}:y"
        yield _dequantize(node.inputs[0:3], a)
        yield _dequantize(node.inputs[3:6], b)
        yield replace(node, op=_BINARY[node.op], inputs=(a, b), outputs=(y,))
        yield _quantize(node, y, node.inputs[6:8])

    def _unary(self, node: Node) -> Iterable[Node]:
        x, y = f"{node.outputs[0]}:x", f"{node.outputs[0]}:y"
        yield _dequantize(node.inputs[0:3], x)
        yield replace(node, op=_UNARY[node.op], inputs=(x,), outputs=(y,))
        yield _quantize(node, y, node.inputs[3:5])

    def _dynamic_quantize_matmul(self, node: Node) -> Iterable[Node]:
        x, b = f"{node.outputs[0]}:x", f"{node.outputs[0]}:b"
        yield Node(DYNAMIC, node.name, (node.inputs[0],), (x,))
        yield _dequantize((node.inputs[1], node.inputs[2], node.input(3)), b, axis=1)
        yield from _with_bias(node, x, b, node.input(4))

    def _matmul_integer_to_float(self, node: Node) -> Iterable[Node]:
        a, b = f"{node.outputs[0]}:a", f"{node.outputs[0]}:b"
        a_q, b_q, a_scale, b_scale = node.inputs[:4]
        yield self._side(node, a_q, a_scale, node.input(4), a)
        yield _dequantize((b_q, b_scale, node.input(5)), b, axis=1)
        yield from _with_bias(node, a, b, node.input(6))

    def _matmul_integer(self, node: Node) -> Iterable[Node]:
        chain = self._chain(node)
        out = chain.nodes[-1].outputs[0]
        a, b = f"{out}:a", f"{out}:b"
        scales = self._scales(node, chain.scale)
        yield self._side(node, node.inputs[0], scales[0], node.input(2), a)
        yield self._side(node, node.inputs[1], scales[1], node.input(3), b)
        self._replaced.update(id(one) for one in chain.nodes)
        product = replace(node, outputs=(out,))
        if not chain.bias:
            yield replace(product, op="MatMul", inputs=(a, b))
            return
        bias = f"{out}:bias"
        yield _dequantize((chain.bias, chain.scale), bias, axis=0)
        yield from _with_bias(product, a, b, bias)

    def _chain(self, node: Node) -> _Chain:
        """Add (int32 bias), Cast and Mul behind an integer product."""
        graph, nodes, bias = self._graph, [], ""
        reader = graph.only_reader(node.outputs[0])
        if reader is not None and reader.op == "Add":
            bias = _other(reader, node.outputs[0])
            if bias not in graph.constants:
                reader = None
            else:
                nodes.append(reader)
                reader = graph.only_reader(reader.outputs[0])
        if reader is not None and reader.op == "Cast":
            nodes.append(reader)
            after = graph.only_reader(reader.outputs[0])
            if after is not None and after.op == "Mul":
                return _Chain(bias, _other(after, reader.outputs[0]), (*nodes, after))
        raise CheckpointError(
            f"{graph.where}: {node.title}: expected its integers to be cast and multiplied with "
            "their scale next; an export of this kind is not known"
        )

    def _scales(self, node: Node, product: str) -> tuple[str, str]:
        """Names of the scales of both sides, of which the graph multiplies with the product."""
        made = self._graph.producers.get(product)
        if made is not None and made.op == "Mul":
            ours, theirs = made.inputs
            dynamic = self._graph.producers.get(self._graph.origin(node.inputs[0]))
            if dynamic is not None and dynamic.outputs[1:2] == (theirs,):
                ours, theirs = theirs, ours
            return ours, theirs
        first, second = (self._static_scale(name) for name in node.inputs[:2])
        if product not in self._graph.constants or first is None:
            raise CheckpointError(
                f"{self._graph.where}: {node.title}: its scale {product!r} is neither constant nor "
                "the product of two; an export of this kind is not known"
            )
        whole = self._graph.constants[product]
        if second is None:
            one = self._graph.constants[first]
            name = f"{node.outputs[0]}:b_scale"
            self.leaves[name] = replace(
                whole,
                load=lambda: whole.load() / one.load().reshape(()),
                leaves=whole.leaves | one.leaves,
            )
            return first, name
        both = [self._graph.constants[name].load().reshape(-1) for name in (first, second)]
        if not torch.allclose(both[0] * both[1], whole.load().reshape(-1), _SAME_SCALE, 0):
            raise CheckpointError(
                f"{self._graph.where}: {node.title}: its scale is not the product of its inputs' "
                "scales; the file contradicts itself"
            )
        return first, second

    def _static_scale(self, integers: str) -> str | None:
        """The scale that the QuantizeLinear node behind some integers divides by."""
        made = self._graph.producers.get(self._graph.origin(integers))
        if made is None or made.op != "QuantizeLinear":
            return None
        return made.inputs[1] if made.inputs[1] in self._graph.constants else None

    def _side(self, node: Node, integers: str, scale: str, zero_point: str, out: str) -> Node:
        """One factor as floats."""
        made = self._graph.producers.get(integers)
        if made is not None and made.op == "DynamicQuantizeLinear":
            if made.outputs != (integers, scale, zero_point):
                raise CheckpointError(
                    f"{self._graph.where}: {node.title}: expected the scale and zero point of "
                    f"{made.title}, got {scale!r} and {zero_point!r}"
                )
            return Node(DYNAMIC, made.name, made.inputs, (out,))
        return _dequantize((integers, scale, zero_point), out, axis=1)

    def _times(self, first: str, second: str, name: str) -> str:
        one, other = self._graph.constants[first], self._graph.constants[second]
        self.leaves[name] = replace(
            other,
            load=lambda: one.load().reshape(()) * other.load(),
            leaves=one.leaves | other.leaves,
        )
        return name


def _with_bias(node: Node, a: str, b: str, bias: str) -> Iterable[Node]:
    if not bias:
        yield replace(node, op="MatMul", inputs=(a, b))
        return
    product = f"{node.outputs[0]}:product"
    yield replace(node, op="MatMul", inputs=(a, b), outputs=(product,))
    yield Node("Add", node.name, (product, bias), node.outputs, scope=node.scope)


def _dequantize(inputs: tuple[str, ...], out: str, axis: int = 1) -> Node:
    return Node("DequantizeLinear", out, _cut(inputs), (out,), {"axis": axis})


def _quantize(node: Node, value: str, parameters: tuple[str, ...]) -> Node:
    name = f"{node.name}:quantize"
    return Node("QuantizeLinear", name, _cut((value, *parameters)), node.outputs)


def _cut(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Without the optional inputs that are left out at the end."""
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return inputs


def _other(node: Node, value: str) -> str:
    return node.inputs[1] if node.inputs[0] == value else node.inputs[0]
