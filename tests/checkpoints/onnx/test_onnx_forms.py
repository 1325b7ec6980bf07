"""ONNX graphs of our own and changed ones: opened exactly, and run as ONNX Runtime does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_runtime import store
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.spec import Structure, ValueSpec
from sparse_runtime.tools.convert import convert

onnx = pytest.importorskip("onnx")


def test_static_graph_opens_as_it_was_packed(
    static: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    run_packed: Any,
    assert_same_layers: Any,
) -> None:
    directory = exported(static)
    checkpoint = open_checkpoint(directory)
    assert_same_layers(checkpoint, static)
    assert checkpoint.layout == "ONNX encoder in hugging_face: ONNX graph"
    model = store.load(static)
    for name in checkpoint.tensors:
        kept = model.tensors.get(name)
        if kept is None:
            kept = model.linears[name.removesuffix(".bias")].bias
        assert torch.equal(checkpoint.tensors[name], kept), name
    convert(directory, tmp_path / "again", progress=False)
    assert torch.equal(run_packed(tmp_path / "again"), run_packed(static))
    # The zeros that were pruned are found again.
    kinds = {
        linear.packed.spec.structure for linear in store.load(tmp_path / "again").linears.values()
    }
    assert kinds == {Structure("unstructured")}


def test_static_graph_runs_as_the_reference(
    static: Path, exported: Callable[..., Path], run_onnx: Any, run_packed: Any, difference: Any
) -> None:
    # Sums of integers are exact in both; what differs is the order of float32 operations, and a
    # value between two steps of a quantizer may then fall to the other side.
    assert difference(run_packed(static), run_onnx(exported(static))) < 1e-3


def test_two_layers_may_share_one_bias(dynamic: Path, exported: Callable[..., Path]) -> None:
    def share(model: Any) -> Any:
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == "encoder.layer.1.output.dense.bias":
                    node.input[place] = "encoder.layer.0.output.dense.bias"
        kept = [t for t in model.graph.initializer if t.name != "encoder.layer.1.output.dense.bias"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return model

    checkpoint = open_checkpoint(
        exported(dynamic, share, "dynamic"), finalise={"activations": "dynamic"}
    )
    first, second = (
        checkpoint.tensors[f"encoder.layer.{layer}.output.dense.bias"] for layer in (0, 1)
    )
    assert torch.equal(first, second)


def test_float_weights_behind_quantizers_are_quantized_as_the_graph_does(
    static: Path, exported: Callable[..., Path], assert_same_layers: Any
) -> None:
    """The form of quantization-aware training: weights are floats that the graph rounds."""

    def fake(model: Any) -> Any:
        graph, tensors = model.graph, {t.name: t for t in model.graph.initializer}
        for node in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
            weight = tensors.get(node.input[0])
            if weight is None:
                continue
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            # A third of a step from where it is rounded to.
            floats = (onnx.numpy_helper.to_array(weight) + np.float32(0.3)) * scale
            zero = onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{weight.name}_z")
            floats = floats.astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(floats, weight.name))
            graph.initializer.append(zero)
            inputs = [weight.name, node.input[1], zero.name]
            quantize = onnx.helper.make_node("QuantizeLinear", inputs, [f"{weight.name}_q"], axis=1)
            graph.node.insert(list(graph.node).index(node), quantize)
            node.input[0] = f"{weight.name}_q"
        return model

    assert_same_layers(open_checkpoint(exported(static, fake)), static)


def test_unsigned_weights_keep_their_zero_points(
    static: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    run_onnx: Any,
    run_packed: Any,
    difference: Any,
) -> None:
    name = "encoder.layer.0.output.dense.weight_quantized"
    stored = {}

    def shift(model: Any) -> Any:
        """uint8 with zero point 7: differences to it reach 248, beyond int8."""
        weight = next(t for t in model.graph.initializer if t.name == name)
        values = (onnx.numpy_helper.to_array(weight).astype(np.int16) + 128).astype(np.uint8)
        stored["weight"] = torch.from_numpy(values.T.copy()).int()
        weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
        count = values.shape[1]
        zero = onnx.numpy_helper.from_array(np.full(count, 7, np.uint8), "zero_points")
        model.graph.initializer.append(zero)
        node = next(n for n in model.graph.node if name in n.input)
        node.input.append("zero_points")
        return model

    directory = exported(static, shift)
    linear = open_checkpoint(directory).linears["encoder.layer.0.output.dense"]
    values = linear.load()
    assert linear.values == ValueSpec("int8", "row", zero_points=True)
    assert values.zero_points is not None
    difference_ = values.weight.int() - values.zero_points.int().unsqueeze(1)
    assert torch.equal(difference_, stored["weight"] - 7)
    convert(directory, tmp_path / "packed", progress=False)
    assert difference(run_packed(tmp_path / "packed"), run_onnx(directory)) < 1e-3


def test_of_several_files_the_user_names_one(static: Path, exported: Callable[..., Path]) -> None:
    directory = exported(static)
    (directory / "onnx").mkdir()
    shutil.copy(directory / "model.onnx", directory / "onnx" / "model_quantized.onnx")
    with pytest.raises(CheckpointError, match=r"file=onnx/model_quantized\.onnx"):
        open_checkpoint(directory)
    checkpoint = open_checkpoint(directory, finalise={"file": "onnx/model_quantized.onnx"})
    assert checkpoint.layout == "ONNX encoder in hugging_face: onnx/model_quantized.onnx"
    for outside in ("../model.onnx", "/model.onnx"):
        with pytest.raises(CheckpointError, match="file in the checkpoint's directory"):
            open_checkpoint(directory, finalise={"file": outside})
    with pytest.raises(CheckpointError, match=r"no other\.onnx"):
        open_checkpoint(directory, finalise={"file": "other.onnx"})
