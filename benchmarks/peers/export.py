"""Writes one checkpoint in the forms that peers read. Runs in the `export` environment.

    python export.py CHECKPOINT_DIR OUT_DIR

OUT_DIR gets model.onnx (float32, symbolic batch and sequence) and model_qdq.onnx (static INT8 by
ONNX Runtime: uint8 activations and int8 weights, ranges from random tokens). Both return the last
hidden state alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
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
    quantize_static(
        str(plain),
        str(folder / "model_qdq.onnx"),
        RandomTokens(model.config.vocab_size),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
