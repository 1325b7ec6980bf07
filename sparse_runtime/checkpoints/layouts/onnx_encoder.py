"""Encoders as ONNX graphs: float, dynamic or static INT8, as torch, ONNX Runtime, Optimum and
SparseML write them.

Sources: the ONNX operators QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, MatMulInteger
and QLinearMatMul; ONNX Runtime, "Quantize ONNX models"; SparseML's export transforms.
"""

from __future__ import annotations

from ..draft import Draft
from ..onnx_graph.assembly import Assembly
from ..readers.onnx_file import OnnxFile
from .base import Layout


def _recognise(draft: Draft) -> str | None:
    if not isinstance(draft.container, OnnxFile):
        return None
    graph = draft.container.graph
    return f"{len(graph.nodes)} nodes in {graph.where}"


def _finalise(draft: Draft) -> None:
    assert isinstance(draft.container, OnnxFile)
    # They go by the graph's names, of which the model knows few.
    draft.tensors.clear()
    Assembly(draft, draft.container.graph).run()


LAYOUT = Layout("ONNX encoder", _recognise, _finalise)
