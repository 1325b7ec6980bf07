"""Packed models, their graphs, and what both compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from sparse_runtime import store
from sparse_runtime.encoders import SparseModel
from sparse_runtime.formats import pack
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    ValueSpec,
)
from sparse_runtime.store import PackedLinear
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


def _run_onnx(directory: Path) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        directory / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    feed = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
    names = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: feed[n].numpy() for n in names})[0])


@pytest.fixture
def run_onnx() -> Any:
    return _run_onnx


def _run_packed(directory: Path) -> Tensor:
    with torch.no_grad():
        return SparseModel.from_pretrained(directory, backend="reference")(
            IDS, MASK, torch.zeros_like(IDS)
        ).last_hidden_state


@pytest.fixture
def run_packed() -> Any:
    return _run_packed


def _difference(one: Tensor, other: Tensor) -> float:
    """Relative, over real tokens."""
    real = MASK.bool()
    return float((one[real] - other[real]).norm() / other[real].norm())


@pytest.fixture
def difference() -> Any:
    return _difference


def _assert_same_layers(checkpoint: Any, packed: Path) -> None:
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


@pytest.fixture
def assert_same_layers() -> Any:
    return _assert_same_layers
