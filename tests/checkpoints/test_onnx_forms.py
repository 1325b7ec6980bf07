"""ONNX graphs in the forms of other writers: opened exactly, and run as ONNX Runtime runs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from sparse_runtime import store
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.formats import pack
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)
from sparse_runtime.store import PackedLinear
from sparse_runtime.testing.exporters import onnx_forms
from sparse_runtime.tools.convert import convert

onnx = pytest.importorskip("onnx")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
IDS = torch.tensor([[2, 7, 11, 13, 40, 3], [2, 9, 9, 21, 3, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with dynamic activations, two of three weights pruned."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("dynamic")
    model = BertModel(BertConfig(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(place / "float")
    convert(place / "float", place / "packed", prune="unstructured@0.66", progress=False)
    return place / "packed"


@pytest.fixture(scope="module")
def static(dynamic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with static inputs, requantized outputs and quantized attention."""
    model = store.load(dynamic)
    uint8 = ActivationSpec("static", "uint8", 2**-5, 121)
    for name, linear in model.linears.items():
        old = linear.packed
        outputs = ActivationSpec("static", "int8", 2**-6, 3) if "intermediate" in name else None
        spec = LinearSpec(old.spec.shape, old.spec.structure, old.spec.values, uint8, outputs)
        model.linears[name] = PackedLinear(pack(old.unpack(), spec, old.scales), linear.bias)
    parts = {"query": uint8, "key": uint8, "value": uint8, "scores": uint8}
    probabilities = ActivationSpec("static", "uint8", 1 / 256, 0)
    attention = QuantizedAttention(**parts, probabilities=probabilities)
    model.attention = {"encoder.layer.1": attention}
    place = tmp_path_factory.mktemp("static") / "packed"
    store.save(model, place)
    return place


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """exported(packed, rewrite) -> directory of the graph that ``rewrite`` makes of the export."""
    from sparse_runtime.integrations.onnx import export_onnx

    def write(packed: Path, rewrite: Callable[[Any], Any] = lambda m: m, form: Any = "qdq") -> Path:
        path = export_onnx(packed, tmp_path / "onnx", form)
        onnx.save(rewrite(onnx.load(path)), path)
        return path.parent

    return write


def run_onnx(directory: Path) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        directory / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    feed = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
    names = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: feed[n].numpy() for n in names})[0])


def run_packed(directory: Path) -> Tensor:
    with torch.no_grad():
        return SparseModel.from_pretrained(directory, backend="reference")(
            IDS, MASK, torch.zeros_like(IDS)
        ).last_hidden_state


def difference(one: Tensor, other: Tensor) -> float:
    """Relative, over real tokens."""
    real = MASK.bool()
    return float((one[real] - other[real]).norm() / other[real].norm())


def assert_same_layers(checkpoint: Any, packed: Path) -> None:
    model = store.load(packed)
    assert set(checkpoint.linears) == set(model.linears)
    for name, linear in checkpoint.linears.items():
        expected, values = model.linears[name].packed, linear.load()
        assert torch.equal(values.weight, expected.unpack()), name
        assert torch.allclose(values.scales, expected.row_scales(), rtol=2e-7, atol=0), name
        assert linear.activations == expected.spec.activations, name
        assert linear.outputs == expected.spec.outputs, name
        assert linear.values == ValueSpec("int8", "row"), name
    assert checkpoint.attention == model.attention


def test_static_graph_opens_as_it_was_packed(
    static: Path, exported: Callable[..., Path], tmp_path: Path
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


def test_static_graph_runs_as_the_reference(static: Path, exported: Callable[..., Path]) -> None:
    # Sums of integers are exact in both; what differs is the order of float32 operations, and a
    # value between two steps of a quantizer may then fall to the other side.
    assert difference(run_packed(static), run_onnx(exported(static))) < 1e-3


@pytest.mark.parametrize("form", ["sparseml_folded", "matmul_integer_to_float"])
def test_fused_static_graphs_open_alike(
    form: str, static: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    directory = exported(static, getattr(onnx_forms, form))
    assert_same_layers(open_checkpoint(directory), static)
    convert(directory, tmp_path / "packed", progress=False)
    assert difference(run_packed(tmp_path / "packed"), run_onnx(directory)) < 1e-3


def test_folded_graphs_without_names_are_mapped_by_their_shape(
    static: Path, exported: Callable[..., Path]
) -> None:
    def forget(model: Any) -> Any:
        model = onnx_forms.sparseml_folded(model)
        for number, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{number}"
        return model

    assert_same_layers(open_checkpoint(exported(static, forget)), static)


@pytest.mark.parametrize("form", [None, "dynamic_quantize_matmul"])
def test_dynamic_graphs_need_the_users_word(
    form: str | None, dynamic: Path, exported: Callable[..., Path], tmp_path: Path
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
    dynamic: Path, exported: Callable[..., Path], tmp_path: Path
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


def test_float_weights_behind_quantizers_are_quantized_as_the_graph_does(
    static: Path, exported: Callable[..., Path]
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
    static: Path, exported: Callable[..., Path], tmp_path: Path
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
