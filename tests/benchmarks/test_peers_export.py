"""What the peers' ONNX files become. Needs the exporter's environment (benchmarks/peers)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def export(checkout_root: Path) -> ModuleType:
    # By its path: that environment has no sparse_runtime.
    path = checkout_root / "benchmarks" / "peers" / "export.py"
    spec = importlib.util.spec_from_file_location("peers_export", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(
    nodes: list[tuple[str, list[str], str]], constants: dict[str, Any], rank: int = 3
) -> Any:
    """x float [batch, 3, 8] to y of ``rank`` axes; the nodes are (operator, inputs, output)."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "graph",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 8])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [f"axis{i}" for i in range(rank)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    return model


def kinds(model: Any) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    # As it is written: no fusion of its own.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def quantized(x: str, name: str) -> list[tuple[str, list[str], str]]:
    return [
        ("QuantizeLinear", [x, f"{name}_scale", f"{name}_zero"], f"{name}_q"),
        ("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], name),
    ]


def scaled(name: str, scale: float, zero: int, dtype: type = np.uint8) -> dict[str, Any]:
    return {f"{name}_scale": np.float32(scale), f"{name}_zero": np.array(zero, dtype)}


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)


def linear_constants() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "w_q": rng.integers(-127, 128, (8, 5)).astype(np.int8),
        "bias": rng.standard_normal(5).astype(np.float32),
        **scaled("w", 0.01, 0, np.int8),
        **scaled("a", 0.03, 131),
    }


LINEAR = [
    *quantized("x", "a"),
    ("DequantizeLinear", ["w_q", "w_scale", "w_zero"], "w"),
    ("MatMul", ["a", "w"], "product"),
]


def test_a_product_of_activations_and_weights_is_done_in_integers(
    export: ModuleType, x: np.ndarray
) -> None:
    nodes = [*LINEAR, ("Add", ["product", "bias"], "y")]
    expected = run(make_model(nodes, linear_constants()), x)
    model = export.with_integer_products(make_model(nodes, linear_constants()))
    # Both DequantizeLinear had no other reader, so they are gone, and their scales with them.
    assert kinds(model) == ["Add", "Cast", "MatMulInteger", "Mul", "QuantizeLinear"]
    assert {tensor.name for tensor in model.graph.initializer} == {
        *("w_q", "w_zero", "a_scale", "a_zero", "bias", "product_scale"),
    }
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_a_product_of_two_activations_is_done_in_integers(
    export: ModuleType, x: np.ndarray
) -> None:
    # As attention's scores: uint8 on both sides, each with a zero point of its own.
    # A Transpose without an attribute reverses the axes, so the batch is squeezed away first.
    nodes = [
        ("Squeeze", ["x", "first"], "row"),
        *quantized("row", "a"),
        ("Transpose", ["row"], "turned"),
        *quantized("turned", "b"),
        ("MatMul", ["a", "b"], "y"),
    ]
    constants = {"first": np.array([0]), **scaled("a", 0.03, 131), **scaled("b", 0.02, 117)}
    expected = run(make_model(nodes, constants, rank=2), x[:1])
    model = export.with_integer_products(make_model(nodes, constants, rank=2))
    assert kinds(model).count("MatMulInteger") == 1
    assert "DequantizeLinear" not in kinds(model)
    np.testing.assert_allclose(run(model, x[:1]), expected, rtol=1e-5, atol=1e-5)


def test_dequantized_values_that_others_read_stay(export: ModuleType, x: np.ndarray) -> None:
    nodes = [*LINEAR, ("ReduceSum", ["a"], "total"), ("Add", ["product", "total"], "y")]
    expected = run(make_model(nodes, linear_constants()), x)
    model = export.with_integer_products(make_model(nodes, linear_constants()))
    assert kinds(model).count("DequantizeLinear") == 1
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-4)


def test_a_product_of_floats_stays(export: ModuleType, x: np.ndarray) -> None:
    # One side alone is quantized.
    nodes = [LINEAR[2], ("MatMul", ["x", "w"], "y")]
    expected = run(make_model(nodes, linear_constants()), x)
    model = export.with_integer_products(make_model(nodes, linear_constants()))
    assert kinds(model) == ["DequantizeLinear", "MatMul"]
    np.testing.assert_array_equal(run(model, x), expected)


def test_constants_behind_identities_become_constants(export: ModuleType, x: np.ndarray) -> None:
    nodes = [
        ("Identity", ["w"], "shared"),
        ("MatMul", ["x", "shared"], "product"),
        ("Identity", ["product"], "y"),  # of a value that is computed: stays
    ]
    constants = {"w": np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)}
    expected = run(make_model(nodes, constants), x)
    model = export.without_identities(make_model(nodes, constants))
    assert kinds(model) == ["Identity", "MatMul"]
    assert "shared" in {tensor.name for tensor in model.graph.initializer}
    np.testing.assert_array_equal(run(model, x), expected)


def test_calibration_tokens_are_batches_that_end(export: ModuleType) -> None:
    reader = export.RandomTokens(30522)
    batches = []
    while (batch := reader.get_next()) is not None:
        batches.append(batch)
    assert len(batches) == 8
    for batch in batches:
        assert list(batch) == export.NAMES
        assert all(v.shape == (1, 128) and v.dtype == np.int64 for v in batch.values())
        assert batch["input_ids"].min() >= 1000 and batch["input_ids"].max() < 30522
