"""Graphs whose weights are a model's and whose arithmetic is not: refused by the node's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

onnx = pytest.importorskip("onnx")

Open = Callable[..., Any]


@pytest.fixture
def opened(dynamic: Path, exported: Callable[..., Path]) -> Open:
    """opened(rewrite, **config) -> the checkpoint of a rewritten graph with two layers."""

    def open_rewritten(rewrite: Callable[[Any], Any], **config: Any) -> Any:
        def written(model: Any) -> Any:
            rewrite(model)
            return model

        directory = exported(dynamic, written, "dynamic")
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return open_checkpoint(directory, finalise={"activations": "dynamic"})

    return open_rewritten


def _node(model: Any, part: str, op: str) -> Any:
    return next(n for n in model.graph.node if part in n.name and n.op_type == op)


def _fuse(model: Any, op: str, **attributes: Any) -> None:
    """Put one node for the function of both layers."""
    for layer in (0, 1):
        module = f"/encoder/layer.{layer}/intermediate/intermediate_act_fn"
        divide = next(
            n
            for n in model.graph.node
            if n.op_type == "Div" and f"layer.{layer}/" in n.name and "intermediate" in n.name
        )
        nodes, value = list(model.graph.node), divide.input[0]
        place = nodes.index(divide)
        # Div, Erf, Add, Mul, Mul
        end = nodes[place + 4].output[0]
        for old in nodes[place : place + 5]:
            model.graph.node.remove(old)
        new = onnx.helper.make_node(op, [value], [end], name=f"{module}/{op}", **attributes)
        model.graph.node.insert(place, new)


@pytest.mark.parametrize(
    ("stated", "op", "attributes"),
    [
        ("gelu", "Gelu", {}),
        ("gelu", "Gelu", {"approximate": "none"}),
        ("gelu_pytorch_tanh", "Gelu", {"approximate": "tanh"}),
        ("gelu_new", "FastGelu", {"domain": "com.microsoft"}),
        ("relu", "Relu", {}),
    ],
)
def test_fused_functions_are_compared_with_the_config(
    stated: str, op: str, attributes: dict[str, Any], opened: Open
) -> None:
    rewrite = lambda model: _fuse(model, op, **attributes)  # noqa: E731
    assert len(opened(rewrite, hidden_act=stated).linears) == 12


def test_a_fused_function_that_the_config_does_not_state(opened: Open) -> None:
    with pytest.raises(CheckpointError, match=r"computes gelu_new .*act_fn/Gelu.*states 'gelu'"):
        opened(lambda model: _fuse(model, "Gelu", approximate="tanh"))


@pytest.mark.parametrize("stated", ["gelu_new", "relu", "quick_gelu", None])
def test_another_function_in_the_config(stated: Any, opened: Open) -> None:
    with pytest.raises(CheckpointError, match=rf"computes gelu \(.*states {stated!r}"):
        opened(lambda model: None, hidden_act=stated)


def test_an_operator_changed_inside_of_gelu(opened: Open) -> None:
    def change(model: Any) -> None:
        # Of the second layer alone.
        _node(model, "layer.1/", "Erf").op_type = "Tanh"

    with pytest.raises(CheckpointError, match=r"no activation function that is known \(.*Tanh"):
        opened(change)


def test_a_constant_changed_inside_of_gelu(opened: Open) -> None:
    def change(model: Any) -> None:
        half = next(t for t in model.graph.initializer if t.name == "half")
        half.CopyFrom(onnx.helper.make_tensor("half", 1, list(half.dims), [0.51]))

    with pytest.raises(CheckpointError, match="no activation function that is known"):
        opened(change)


@pytest.mark.parametrize("op", ["Softplus", "LeakyRelu"])
def test_an_operator_that_is_not_known(op: str, opened: Open) -> None:
    with pytest.raises(CheckpointError, match=rf"no activation function.*act_fn/{op}"):
        opened(lambda model: _fuse(model, op))


@pytest.mark.parametrize(
    ("place", "perm", "said"),
    [
        (0, [0, 1, 2, 3], "got "),
        (1, [0, 2, 1, 3], "got "),
        (2, [2, 0, 1, 3], "got "),
        # Behind the context.
        (3, [0, 2, 3, 1], "got "),
        (0, [0, 2, 2, 3], "expected perm to order the four axes"),
        (0, [1, 0], "expected perm to order the four axes"),
        (0, None, "expected perm to order the four axes"),
    ],
)
def test_another_order_of_axes(place: int, perm: Any, said: str, opened: Open) -> None:
    changed: list[str] = []

    def change(model: Any) -> None:
        found = [n for n in model.graph.node if n.op_type == "Transpose" and "layer.1/" in n.name]
        node = found[place]
        changed.append(node.name)
        del node.attribute[:]
        if perm is not None:
            node.attribute.append(onnx.helper.make_attribute("perm", perm))

    with pytest.raises(CheckpointError) as caught:
        opened(change)
    assert changed[0] in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("to", "opens"), [(1, True), (6, False), (10, False), (11, False)])
@pytest.mark.parametrize("place", ["embeddings", "layer.0/"])
def test_casts_of_activations(to: int, opens: bool, place: str, opened: Open) -> None:
    def change(model: Any) -> None:
        # In front of a norm: behind the tables, or behind a residual.
        norm = _node(model, place, "LayerNormalization")
        cast = onnx.helper.make_node("Cast", [norm.input[0]], ["cast"], name="rounding", to=to)
        model.graph.node.insert(list(model.graph.node).index(norm), cast)
        norm.input[0] = "cast"

    if opens:
        assert len(opened(change).linears) == 12
        return
    with pytest.raises(CheckpointError, match=rf"Cast rounding: activations are cast .* {to};"):
        opened(change)
