"""export_onnx(): a packed model's directory becomes one with model.onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ... import store
from ...encoders.pipeline import runs_base_model
from ...encoders.settings import read_settings
from ...encoders.weights import Weights
from ...ops import get_backend
from ...store.directories import read_path
from ..directories import check_new, new_directory
from .encoder import EncoderGraph
from .linear import Form

# Protobuf holds 2 GiB; weights of a larger model lie in a file beside the graph.
_LARGEST_FILE = 2**31 - 2**20


def export_onnx(packed_dir: str | Path, out_dir: str | Path, form: Form = "qdq") -> Path:
    """Write a packed encoder as an ONNX graph, for ONNX Runtime, OpenVINO and others.

    The graph computes what the reference computes: weights as packed (dense, for ONNX has no
    sparse products), static activations through QuantizeLinear and DequantizeLinear, quantized
    attention likewise. Batch and sequence are symbolic; the outputs have the names that Optimum
    gives them. Tokenizer and sentence-transformers files come along.

    Args:
        packed_dir: directory of a packed model.
        out_dir: where model.onnx and config.json go; must not exist, or be empty.
        form: what becomes of inputs that are quantized at run time, token by token. "qdq" refuses
            them. "dynamic" writes DynamicQuantizeLinear and MatMulInteger, with one scale for a
            whole batch: the results differ, and depend on what else is in the batch.

    Returns:
        The path of model.onnx.

    Raises:
        ImportError: the package onnx is missing.
        ValueError: ``form`` is unknown, or a layer has no such form.
        FileExistsError: ``out_dir`` is not empty.
    """
    if form not in ("qdq", "dynamic"):
        raise ValueError(f"form {form!r}: expected 'qdq' or 'dynamic'")
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "writing ONNX needs the package onnx; pip install sparse-runtime[onnx]"
        ) from error
    source = read_path("packed_dir", packed_dir).expanduser()
    target = read_path("out_dir", out_dir).expanduser()
    check_new(target)
    packed = store.load(source)
    settings = read_settings(
        packed.config,
        sentence_encoder=runs_base_model(source),
        head_size=packed.head_size,
    )
    weights = Weights(packed, settings, get_backend("reference", "cpu", torch.float32))
    model = EncoderGraph(packed, settings, weights, form).write()
    with new_directory(target, packed.config, source) as staging:
        _write(onnx, model, staging / "model.onnx")
    return target / "model.onnx"


def _write(onnx: Any, model: Any, path: Path) -> None:
    onnx.checker.check_model(model)
    if model.ByteSize() < _LARGEST_FILE:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data")
