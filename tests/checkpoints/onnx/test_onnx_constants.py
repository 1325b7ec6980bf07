"""What a graph computes of its weights alone is checked as the weights are."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.checkpoints import CheckpointError
from sparse_runtime.checkpoints.onnx_graph.constants import Constant, folded
from sparse_runtime.checkpoints.onnx_graph.nodes import Node


def constant(name: str, tensor: torch.Tensor) -> Constant:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Constant(tuple(tensor.shape), dtype, lambda: tensor, frozenset({name}))


def test_a_weight_that_the_graph_rounds_is_finite() -> None:
    weight = torch.tensor([[0.5, -1.0], [0.26, 2.0]])
    known = {
        "w": constant("w", weight),
        "scale": constant("scale", torch.tensor(0.5)),
        "zero": constant("zero", torch.tensor(0, dtype=torch.int8)),
    }
    node = Node("QuantizeLinear", "round", ("w", "scale", "zero"), ("q",))
    rounded = folded(node, known)
    assert rounded is not None
    assert rounded.load().tolist() == [[1, -2], [1, 4]]
    weight[1, 0] = torch.nan  # no integer stands for it
    with pytest.raises(CheckpointError, match=r"w: expected finite numbers, got nan at \[1, 0\]"):
        rounded.load()
