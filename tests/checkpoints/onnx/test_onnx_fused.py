"""ONNX graphs in the fused forms of other writers: taken apart exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_runtime import store
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.formats import pack
from sparse_runtime.spec import LinearSpec
from sparse_runtime.store import PackedLinear
from sparse_runtime.testing.exporters import onnx_forms
from sparse_runtime.tools.convert import convert

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("form", ["sparseml_folded", "matmul_integer_to_float"])
def test_fused_static_graphs_open_alike(
    form: str,
    static: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    run_onnx: Any,
    run_packed: Any,
    difference: Any,
    assert_same_layers: Any,
) -> None:
    directory = exported(static, getattr(onnx_forms, form))
    assert_same_layers(open_checkpoint(directory), static)
    convert(directory, tmp_path / "packed", progress=False)
    assert difference(run_packed(tmp_path / "packed"), run_onnx(directory)) < 1e-3


def test_folded_graphs_without_names_are_mapped_by_their_shape(
    static: Path, exported: Callable[..., Path], assert_same_layers: Any
) -> None:
    def forget(model: Any) -> Any:
        model = onnx_forms.sparseml_folded(model)
        for number, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{number}"
        return model

    assert_same_layers(open_checkpoint(exported(static, forget)), static)


@pytest.mark.parametrize("form", [None, "dynamic_quantize_matmul"])
def test_dynamic_graphs_need_the_users_word(
    form: str | None,
    dynamic: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    run_onnx: Any,
    run_packed: Any,
    difference: Any,
    assert_same_layers: Any,
) -> None:
    rewrite = getattr(onnx_forms, form) if form else (lambda model: model)
    directory = exported(dynamic, rewrite, "dynamic")
    with pytest.raises(CheckpointError, match="--finalise activations=dynamic"):
        open_checkpoint(directory)
    finalise = {"activations": "dynamic"}
    checkpoint = open_checkpoint(directory, finalise=finalise)
    assert_same_layers(checkpoint, dynamic)
    assert any("a scale and a zero point a token" in step for step in checkpoint.steps)
    convert(directory, tmp_path / "packed", finalise=finalise, progress=False)
    assert torch.equal(run_packed(tmp_path / "packed"), run_packed(dynamic))
    # One scale for the batch is coarser than one a token: close, and not equal.
    assert 0 < difference(run_packed(dynamic), run_onnx(directory)) < 0.02


def _one_product(model: Any) -> Any:
    """Queries, keys and values of each layer side by side, cut apart behind the bias."""
    graph, tensors = model.graph, {t.name: t for t in model.graph.initializer}
    value = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    for layer in (0, 1):
        module = f"encoder.layer.{layer}.attention.self"
        names = [f"{module}.{part}" for part in ("query", "key", "value")]
        nodes = [
            n for n in graph.node if any(f"/{p}/" in n.name for p in ("query", "key", "value"))
        ]
        nodes = [n for n in nodes if f"/layer.{layer}/" in n.name]
        nodes = [n for n in nodes if n.op_type not in ("Reshape", "Transpose")]
        place = list(graph.node).index(nodes[0])
        source = next(n.input[0] for n in nodes if n.op_type == "MatMul")
        adds = [n.output[0] for n in nodes if n.op_type == "Add"]
        for node in nodes:
            graph.node.remove(node)
        joined = {
            f"{module}.w": np.concatenate([value[f"{n}.weight_quantized"] for n in names], 1),
            f"{module}.s": np.concatenate([value[f"{n}.weight_scale"] for n in names]),
            f"{module}.b": np.concatenate([value[f"{n}.bias"] for n in names]),
        }
        graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name) for name, array in joined.items()
        )
        make = onnx.helper.make_node
        w, s, b = joined
        new = [
            make("DequantizeLinear", [w, s], [f"{w}_f"], axis=1),
            make("MatMul", [source, f"{w}_f"], [f"{w}_y"], name=f"/layer.{layer}/qkv/MatMul"),
            make("Add", [b, f"{w}_y"], [f"{w}_z"]),
            make("Split", [f"{w}_z"], adds, axis=-1),
        ]
        for offset, node in enumerate(new):
            graph.node.insert(place + offset, node)
    return model


def _weights_alone(packed: Path, place: Path) -> Path:
    """The model with float activations."""
    model = store.load(packed)
    for name, linear in model.linears.items():
        old = linear.packed
        spec = LinearSpec(old.spec.shape, old.spec.structure, old.spec.values)
        model.linears[name] = PackedLinear(pack(old.unpack(), spec, old.scales), linear.bias)
    store.save(model, place)
    return place


def test_queries_keys_and_values_of_one_product_are_cut_apart(
    dynamic: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    run_onnx: Any,
    run_packed: Any,
    difference: Any,
    assert_same_layers: Any,
) -> None:
    packed = _weights_alone(dynamic, tmp_path / "packed")
    directory = exported(packed, _one_product)
    assert difference(run_packed(packed), run_onnx(directory)) < 1e-3
    checkpoint = open_checkpoint(directory)
    assert_same_layers(checkpoint, packed)
    model = store.load(packed)
    for name, linear in model.linears.items():
        assert linear.bias is not None
        assert torch.equal(checkpoint.tensors[f"{name}.bias"], linear.bias), name
