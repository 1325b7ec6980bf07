"""ONNX files that are damaged, hostile, or say something else than an encoder: refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.tools.convert import convert

onnx = pytest.importorskip("onnx")

DYNAMIC = {"activations": "dynamic"}
WEIGHT = "encoder.layer.0.output.dense.weight_quantized"
SCALE = "encoder.layer.0.output.dense.weight_scale"
BIAS = "encoder.layer.0.output.dense.bias"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """(graph with dynamic INT8 layers, config.json) of a tiny encoder."""
    from sparse_runtime.integrations.onnx import export_onnx

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("refusals")
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(place / "float")
    convert(place / "float", place / "packed", progress=False)
    path = export_onnx(place / "packed", place / "onnx", "dynamic")
    return path.read_bytes(), (path.parent / "config.json").read_text()


@pytest.fixture
def model(written: tuple[bytes, str]) -> Any:
    return onnx.load_model_from_string(written[0])


@pytest.fixture
def refusal(written: tuple[bytes, str], tmp_path: Path) -> Callable[[Any], str]:
    """refusal(model or bytes) -> what opening it and reading all of it says."""

    def refuse(content: Any) -> str:
        data = content if isinstance(content, bytes) else content.SerializeToString()
        (tmp_path / "model.onnx").write_bytes(data)
        (tmp_path / "config.json").write_text(written[1])
        with pytest.raises(CheckpointError) as caught:
            checkpoint = open_checkpoint(tmp_path, finalise=DYNAMIC)
            for name in checkpoint.tensors:
                checkpoint.tensors[name]
            for linear in checkpoint.linears.values():
                linear.load()
        return str(caught.value)

    return refuse


def initializer(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model: Any, ending: str) -> Any:
    return next(node for node in model.graph.node if node.name.endswith(ending))


def test_the_graph_itself_opens(model: Any, written: tuple[bytes, str], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(written[0])
    (tmp_path / "config.json").write_text(written[1])
    checkpoint = open_checkpoint(tmp_path, finalise=DYNAMIC)
    assert len(checkpoint.linears) == 6
    with pytest.raises(CheckpointError, match="other_quantizers means nothing"):
        open_checkpoint(tmp_path, finalise=DYNAMIC | {"other_quantizers": "drop"})
    with pytest.raises(CheckpointError, match="expected one of dynamic"):
        open_checkpoint(tmp_path, finalise={"activations": "static"})


def test_biases_that_the_graph_leaves_out_are_zeros(
    model: Any, written: tuple[bytes, str], tmp_path: Path
) -> None:
    del node(model, "layer.0/output/LayerNorm/LayerNormalization").input[2:]
    adding = node(model, "intermediate/dense/Add")
    product = next(n for n in model.graph.node if n.output[0] in adding.input)
    model.graph.node.remove(adding)
    product.output[0] = adding.output[0]
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(written[1])
    checkpoint = open_checkpoint(tmp_path, finalise=DYNAMIC)
    for name, size in (("output.LayerNorm", 8), ("intermediate.dense", 12)):
        bias = checkpoint.tensors[f"encoder.layer.0.{name}.bias"]
        assert torch.equal(bias, torch.zeros(size))
    assert "encoder.layer.0.intermediate.dense.bias = 0: the graph adds none" in checkpoint.steps
    assert checkpoint.dropped["encoder.layer.0.intermediate.dense.bias"] == "no node reads it"


def test_long_chains_of_reshapes(model: Any, written: tuple[bytes, str], tmp_path: Path) -> None:
    """Deeper than Python's stack."""
    first = node(model, "query/DynamicQuantizeLinear")
    place, value = list(model.graph.node).index(first), first.input[0]
    for step in range(3000):
        model.graph.node.insert(
            place + step, onnx.helper.make_node("Identity", [value], [f"same_{step}"])
        )
        value = f"same_{step}"
    first.input[0] = value
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(written[1])
    assert len(open_checkpoint(tmp_path, finalise=DYNAMIC).linears) == 6


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(share: float, written: tuple[bytes, str], refusal: Any) -> None:
    data = written[0]
    assert "model.onnx" in refusal(data[: int(len(data) * share)])


def test_bytes_that_are_no_protobuf(refusal: Any) -> None:
    assert "not a readable ONNX file" in refusal(b"\xff" * 64)


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/hostname", "a/../../weights", "", "C:weights", "a\\b", "."]
)
def test_external_data_outside_of_the_directory(location: str, model: Any, refusal: Any) -> None:
    tensor = initializer(model, WEIGHT)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    message = refusal(model)
    assert WEIGHT in message
    assert "external data" in message


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "absent"}, "is missing"),
        ({"location": "weights", "offset": "1"}, "do not belong together"),
        ({"location": "weights", "offset": "-1"}, "do not belong together"),
        ({"location": "weights", "length": "95"}, "do not belong together"),
        ({"location": "weights", "offset": "one"}, "no numbers"),
    ],
)
def test_external_data_that_does_not_fit(
    entries: dict[str, str], said: str, model: Any, refusal: Any, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(bytes(96))
    tensor = initializer(model, WEIGHT)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    assert said in refusal(model)


def test_external_data_beside_the_graph_opens(
    model: Any, written: tuple[bytes, str], tmp_path: Path
) -> None:
    inline, outside = tmp_path / "inline", tmp_path / "outside"
    for place, external in ((inline, False), (outside, True)):
        place.mkdir()
        (place / "config.json").write_text(written[1])
        # onnx empties the model that it writes with external data.
        copy = onnx.load_model_from_string(written[0])
        onnx.save(
            copy,
            place / "model.onnx",
            save_as_external_data=external,
            location="model.onnx_data",
            size_threshold=0,
        )
    one, two = (open_checkpoint(place, finalise=DYNAMIC) for place in (inline, outside))
    assert (outside / "model.onnx_data").stat().st_size > 1000
    assert set(one.tensors) == set(two.tensors)
    for name in one.tensors:
        assert torch.equal(one.tensors[name], two.tensors[name]), name
    for name, linear in one.linears.items():
        assert torch.equal(linear.load().weight, two.linears[name].load().weight), name


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([12, 9], "expected 108 bytes"),
        ([-12, 8], "at least 0"),
        ([2**40, 2**40], "got 96"),
        ([8, 12], "expected one scale"),
        ([96], "expected one scale"),
    ],
)
def test_weights_of_another_shape(sizes: list[int], said: str, model: Any, refusal: Any) -> None:
    tensor = initializer(model, WEIGHT)
    del tensor.dims[:]
    tensor.dims.extend(sizes)
    assert said in refusal(model)


def test_a_bias_of_another_size(model: Any, refusal: Any) -> None:
    bias = onnx.numpy_helper.from_array(np.ones(7, np.float32), BIAS)
    initializer(model, BIAS).CopyFrom(bias)
    message = refusal(model)
    assert "tensors are used, but not as" in message or "bias" in message


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_no_scales(bad: float, model: Any, refusal: Any) -> None:
    scales = onnx.numpy_helper.to_array(initializer(model, SCALE)).copy()
    scales[3] = bad
    initializer(model, SCALE).CopyFrom(onnx.numpy_helper.from_array(scales, SCALE))
    assert "finite scales above 0" in refusal(model)


@pytest.mark.parametrize(
    "ending", ["query/MatMulInteger", "attention/Softmax", "output/dense/Mul", "dense/Cast"]
)
def test_missing_nodes(ending: str, model: Any, refusal: Any) -> None:
    model.graph.node.remove(node(model, ending))
    assert "a node is missing, or the graph has a cycle" in refusal(model)


def test_cycles(model: Any, refusal: Any) -> None:
    # The first norm reads the last one's result.
    last = node(model, "layer.0/output/LayerNorm/LayerNormalization")
    node(model, "embeddings/LayerNorm/LayerNormalization").input[0] = last.output[0]
    assert "the graph has a cycle" in refusal(model)


def test_values_with_two_producers(model: Any, refusal: Any) -> None:
    model.graph.node.append(model.graph.node[0])
    assert "makes" in refusal(model)


def test_names_that_are_used_twice(model: Any, refusal: Any) -> None:
    model.graph.initializer.append(initializer(model, BIAS))
    assert "names of their own" in refusal(model)


@pytest.mark.parametrize("op", ["Attention", "SkipLayerNormalization", "EmbedLayerNormalization"])
def test_fused_operators_are_named(op: str, model: Any, refusal: Any) -> None:
    model.graph.node.add(op_type=op, domain="com.microsoft", output=["fused"])
    message = refusal(model)
    assert f"com.microsoft.{op}" in message
    assert "from before that step" in message


def test_control_flow(model: Any, refusal: Any) -> None:
    branch = onnx.helper.make_graph([], "branch", [], [])
    model.graph.node.append(
        onnx.helper.make_node("If", ["input_ids"], ["chosen"], then_branch=branch)
    )
    assert "control flow" in refusal(model)


def test_tensors_without_a_meaning(model: Any, refusal: Any) -> None:
    # Position embeddings that were folded for one length: no table that a model has.
    folded = onnx.numpy_helper.from_array(np.ones((1, 16, 8), np.float32), "folded")
    model.graph.initializer.append(folded)
    first = node(model, "embeddings/LayerNorm/LayerNormalization")
    model.graph.node.insert(
        list(model.graph.node).index(first),
        onnx.helper.make_node("Sub", [first.input[0], "folded"], ["moved"]),
    )
    node(model, "embeddings/LayerNorm/LayerNormalization").input[0] = "moved"
    message = refusal(model)
    assert "folded float32 [1, 16, 8]" in message


def test_names_that_contradict_the_graph(model: Any, refusal: Any) -> None:
    for found in model.graph.node:
        if "/query/" in found.name:
            found.name = found.name.replace("/query/", "/key/")
        elif "/key/" in found.name:
            found.name = found.name.replace("/key/", "/query/")
    assert "stands in the graph where" in refusal(model)


def test_lost_names_of_an_unknown_graph(model: Any, refusal: Any, written: Any) -> None:
    for number, found in enumerate(model.graph.node):
        found.name = f"{found.op_type}_{number}"
        for place, name in enumerate(found.input):
            if name.startswith("encoder.layer"):
                found.input[place] = name.replace("encoder.layer", "w").replace(".", "_")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("encoder.layer"):
            tensor.name = tensor.name.replace("encoder.layer", "w").replace(".", "_")
    assert "has lost its name" in refusal(model)


def test_integers_that_are_never_scaled(model: Any, refusal: Any) -> None:
    scaled = node(model, "query/Mul")
    scaled.op_type = "Div"
    assert "expected its integers to be cast and multiplied" in refusal(model)


def test_graph_and_config_that_disagree(model: Any, written: Any, tmp_path: Path) -> None:
    config = json.loads(written[1]) | {"num_hidden_layers": 2}
    (tmp_path / "model.onnx").write_bytes(written[0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layer\.1"):
        convert(tmp_path, tmp_path / "packed", finalise=DYNAMIC, progress=False)


def test_without_the_package(
    written: tuple[bytes, str], refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install sparse-runtime[onnx]" in refusal(written[0])


@pytest.mark.parametrize("op", ["MatMul", "Softmax", "Transpose", "Cast", "Gather", "Add"])
@pytest.mark.parametrize("emptied", [False, True])
def test_nodes_that_lack_an_input(op: str, emptied: bool, model: Any, refusal: Any) -> None:
    lame = next(node for node in model.graph.node if node.op_type == op)
    del lame.input[-1]
    if emptied:
        lame.input.append("")
    message = refusal(model)
    assert f"model.onnx: {op} {lame.name}: input {len(lame.input) - emptied} is missing" in message


def test_matrices_without_rows(model: Any, refusal: Any) -> None:
    weight = initializer(model, WEIGHT)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 0), np.int8), WEIGHT))
    scale = initializer(model, SCALE)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), SCALE))
    assert "expected a matrix of weights, got one of shape [8, 0]" in refusal(model)


def test_a_vector_without_elements_is_refused(
    model: Any, written: tuple[bytes, str], tmp_path: Path
) -> None:
    bias = "encoder.layer.0.output.LayerNorm.bias"
    empty = onnx.numpy_helper.from_array(np.zeros(0, np.float32), bias)
    initializer(model, bias).CopyFrom(empty)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "config.json").write_text(written[1])
    with pytest.raises(CheckpointError, match=r"LayerNorm\.bias: .*sizes from 1, got \[0\]"):
        open_checkpoint(tmp_path, finalise=DYNAMIC)
