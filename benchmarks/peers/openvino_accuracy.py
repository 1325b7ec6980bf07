"""A fine-tuned classifier in OpenVINO's INT8. Runs in two environments of the peers.

    export/bin/python openvino_accuracy.py export CHECKPOINT MODEL.onnx
    ov/bin/python openvino_accuracy.py evaluate MODEL.onnx TOKENS.npz

TOKENS.npz holds int64 `calibration_ids`, `calibration_mask`, `ids` and `mask` [texts, tokens], and
`labels`. Quantized by NNCF as it is for transformers, from the calibration texts. Prints the share
of right answers and the bytes of the model, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


def export(checkpoint: str, out: str) -> None:
    """Write the classifier as ONNX, batch and tokens symbolic."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation="eager"
    ).eval()
    ones = torch.ones(2, 16, dtype=torch.long)
    torch.onnx.export(
        model,
        (ones, ones, torch.zeros_like(ones)),
        out,
        input_names=NAMES,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in NAMES} | {"logits": {0: "batch"}},
        opset_version=14,
        dynamo=False,
    )


def evaluate(model_file: str, tokens_file: str) -> None:
    """Quantize, answer every text, print the accuracy."""
    import nncf
    import openvino as ov

    core = ov.Core()
    data = np.load(tokens_file)
    calibration = list(rows(data["calibration_ids"], data["calibration_mask"]))
    quantized = nncf.quantize(
        core.read_model(model_file),
        nncf.Dataset(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    weights = Path(model_file).with_suffix(".xml")
    ov.save_model(quantized, weights, compress_to_fp16=False)
    compiled = core.compile_model(quantized, "CPU")
    request = compiled.create_infer_request()
    classes = [
        int(request.infer(row)[compiled.output(0)].argmax(1)[0])
        for row in rows(data["ids"], data["mask"])
    ]
    answer = {
        "accuracy": float((np.array(classes) == data["labels"]).mean()),
        "bytes": weights.with_suffix(".bin").stat().st_size,
        "version": ov.__version__,
    }
    print(json.dumps(answer))


def rows(ids: Any, mask: Any) -> Any:
    """One text at a time, without its padding."""
    for one, kept in zip(ids, mask, strict=True):
        text = one[kept.astype(bool)][None]
        yield {
            "input_ids": text,
            "attention_mask": np.ones_like(text),
            "token_type_ids": np.zeros_like(text),
        }


if __name__ == "__main__":
    {"export": export, "evaluate": evaluate}[sys.argv[1]](*sys.argv[2:])
