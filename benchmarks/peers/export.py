"""Writes one checkpoint in the forms that peers read. Runs in the `export` environment.

    python export.py CHECKPOINT_DIR OUT_DIR

OUT_DIR gets model.onnx (float32, symbolic batch and sequence) and two of static INT8 (uint8
activations and int8 weights, ranges from random tokens): model_qdq.onnx, QuantizeLinear and
DequantizeLinear around the products' inputs and outputs, and model_integer.onnx, every product a
MatMulInteger. All return the last hidden state alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from transformers import AutoModel

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Encoder(torch.nn.Module):
    """The encoder without its pooler."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The last hidden state."""
        return self.model(input_ids, attention_mask, token_type_ids)[0]


class RandomTokens(CalibrationDataReader):
    """A few batches of random tokens."""

    def __init__(self, vocabulary: int) -> None:
        rng = np.random.default_rng(0)
        batches = rng.integers(1000, vocabulary, (8, 1, 128))
        self._left = iter(
            [
                {
                    "input_ids": ids.astype(np.int64),
                    "attention_mask": np.ones_like(ids),
                    "token_type_ids": np.zeros_like(ids),
                }
                for ids in batches
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def without_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """The exporter shares equal constants through Identity nodes; peers want initializers."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            copy = onnx.TensorProto()
            copy.CopyFrom(constants[node.input[0]])
            copy.name = node.output[0]
            model.graph.initializer.append(copy)
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def with_integer_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Products between DequantizeLinear nodes become MatMulInteger, Cast, Mul.

    DeepSparse runs a MatMul of dequantized tensors in float32 (9 ms where this takes 1.7, MiniLM,
    128 tokens); SparseML's exports, which it was made for, hold integer products.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes, scales = [], []
    for node in model.graph.node:
        sides = [producers[name] for name in node.input if name in producers]
        sides = [side for side in sides if side.op_type == "DequantizeLinear"]
        if node.op_type != "MatMul" or len(sides) != 2:
            nodes.append(node)
            continue
        a, b = sides
        scale = np.float32(1)
        for side in sides:
            scale = np.float32(scale * numpy_helper.to_array(constants[side.input[1]]).item())
        name = node.output[0]
        scales.append(numpy_helper.from_array(np.array(scale, np.float32), name + "_scale"))
        zeros = [a.input[2], b.input[2]]
        nodes += [
            helper.make_node("MatMulInteger", [a.input[0], b.input[0], *zeros], [name + "_int"]),
            helper.make_node("Cast", [name + "_int"], [name + "_sum"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [name + "_sum", name + "_scale"], [name]),
        ]
    outputs = {output.name for output in model.graph.output}
    while True:
        used = outputs.union(*(node.input for node in nodes))
        alive = [node for node in nodes if used.intersection(node.output)]
        if len(alive) == len(nodes):
            break
        nodes = alive
    kept = [t for t in [*model.graph.initializer, *scales] if t.name in used]
    for field, items in (("node", nodes), ("initializer", kept), ("value_info", [])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(items)
    onnx.checker.check_model(model)
    return model


def quantize(plain: Path, out: Path, vocabulary: int, float_outputs: Sequence[str] = ()) -> None:
    """Write `plain` in QDQ form; the outputs of `float_outputs` operators are not quantized."""
    quantize_static(
        str(plain),
        str(out),
        RandomTokens(vocabulary),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "OpTypesToExcludeOutputQuantization": list(float_outputs),
        },
    )


def main(checkpoint: str, out: str) -> None:
    """Export one checkpoint directory."""
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(
        checkpoint, attn_implementation="eager", add_pooling_layer=False
    ).eval()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    example = (torch.ones(2, 16, dtype=torch.long),) * 3
    example = (example[0], example[0], torch.zeros_like(example[0]))
    axes = {name: {0: "batch", 1: "sequence"} for name in [*NAMES, "output"]}
    plain = folder / "model.onnx"
    torch.onnx.export(
        Encoder(model),
        example,
        str(plain),
        input_names=NAMES,
        output_names=["output"],
        dynamic_axes=axes,
        opset_version=14,
        dynamo=False,
    )
    onnx.save(without_identities(onnx.load(str(plain))), str(plain))
    # ITREX fuses attention where the products' outputs are quantized too.
    quantize(plain, folder / "model_qdq.onnx", model.config.vocab_size)
    integer = folder / "model_integer.onnx"
    quantize(plain, integer, model.config.vocab_size, float_outputs=["MatMul", "Gemm"])
    onnx.save(with_integer_products(onnx.load(str(integer))), str(integer))


if __name__ == "__main__":
    main(*sys.argv[1:])
