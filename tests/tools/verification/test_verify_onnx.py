"""inspect, convert and verify on a directory whose only weights are an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import sparse_runtime as sr

onnx = pytest.importorskip("onnx")

FINALISE = {"activations": "dynamic"}
TEXTS = ["a b c", "d e f g h", "x y"]


@pytest.fixture(scope="module")
def graph(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, pruned and quantized, as a graph."""
    from sparse_runtime.integrations.onnx import export_onnx

    place = tmp_path_factory.mktemp("graph")
    make_checkpoint(place / "float", "bert", "BertForSequenceClassification")
    sr.convert(place / "float", place / "packed", prune="2:4", progress=False)
    return export_onnx(place / "packed", place / "onnx", "dynamic").parent


def test_a_graph_is_the_original_of_what_was_made_from_it(graph: Path, tmp_path: Path) -> None:
    report = sr.convert(graph, tmp_path / "packed", finalise=FINALISE, progress=False)
    assert report.layout == "ONNX encoder in hugging_face: ONNX graph"
    assert {layer.structure for layer in report.layers} == {"2:4"}
    assert all(layer.error == 0 for layer in report.layers)
    verified = sr.verify(tmp_path / "packed", graph, texts=TEXTS, finalise=FINALISE)
    assert verified.passed
    # The original is the dequantized graph with float activations.
    assert 0 < verified.output.relative < 0.05


def test_another_graph_is_not_the_original(graph: Path, tmp_path: Path) -> None:
    sr.convert(graph, tmp_path / "packed", finalise=FINALISE, progress=False)
    other = tmp_path / "other"
    other.mkdir()
    for path in graph.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    model = onnx.load(other / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "classifier.weight":
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
    onnx.save(model, other / "model.onnx")
    assert not sr.verify(tmp_path / "packed", other, texts=TEXTS, finalise=FINALISE).passed


def test_inspect_lists_the_matrices_of_a_graph(graph: Path) -> None:
    report = sr.inspect(graph, finalise=FINALISE)
    rows = {row.name: row for row in report.matrices}
    query = next(row for name, row in rows.items() if "layer.0.attention.self.query" in name)
    assert query.structure == "2:4"
    assert query.shape == (32, 32)
