"""Whether every node has the inputs that its operator needs, so that nothing else has to ask."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from ..errors import CheckpointError

# ONNX Runtime, docs/ContribOperators.md: places of the inputs that are not optional.
_CONTRIBUTED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), (0, 1)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), (0, 1, 3, 4, 6)),
    **dict.fromkeys(("QLinearSoftmax", "QLinearSigmoid"), (0, 1, 3)),
    **dict.fromkeys(("Gelu", "FastGelu"), (0,)),
    "DynamicQuantizeMatMul": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 1, 2, 3),
    "QGemm": (0, 1, 3, 4),
}


def check_arity(where: str, model: Any) -> None:
    """Raise CheckpointError for the first node that lacks an input."""
    opsets = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    for node in model.graph.node:
        lacking = [
            place
            for place in _needed(node.op_type, node.domain, *opsets[:1])
            if place >= len(node.input) or not node.input[place]
        ]
        if lacking:
            raise CheckpointError(
                f"{where}: {node.op_type} {node.name or ' '.join(node.output)}: input {lacking[0]} "
                f"is missing ({len(node.input)} are given); the file is damaged"
            )


@cache
def _needed(op: str, domain: str, opset: int = 1) -> Iterable[int]:
    from onnx import defs

    if domain == "com.microsoft":
        return _CONTRIBUTED.get(op, ())
    try:
        schema = defs.get_schema(op, opset)
    except defs.SchemaError:
        # Newer than the file's opset says, or no operator at all, which no layer is made of.
        if not defs.has(op):
            return ()
        schema = defs.get_schema(op)
    single = defs.OpSchema.FormalParameterOption.Single
    return [place for place, given in enumerate(schema.inputs) if given.option == single]
