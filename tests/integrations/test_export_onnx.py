"""export_onnx: graphs that ONNX Runtime runs as the packed model runs, and that open again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForTokenClassification,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sparse_runtime import store
from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.tools.convert import convert

onnx = pytest.importorskip("onnx")

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
_DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50}
# What each reaches: pooler; tanh GELU and an answer's two outputs; a tied decoder; no token types;
# positions behind padding and a head of two layers; a projection; biases by distance.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "labels": lambda: BertForSequenceClassification(BertConfig(**SIZES, hidden_act="relu")),
    "answers": lambda: BertForQuestionAnswering(BertConfig(**SIZES, hidden_act="gelu_new")),
    "words": lambda: BertForMaskedLM(BertConfig(**SIZES, hidden_act="silu")),
    "distilbert": lambda: DistilBertForTokenClassification(DistilBertConfig(**_DISTILBERT)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=16)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
}
OUTPUTS = {
    "bert": ["last_hidden_state", "pooler_output"],
    "answers": ["start_logits", "end_logits"],
    "electra": ["last_hidden_state"],
    "mpnet": ["last_hidden_state", "pooler_output"],
}
# The second text is padded.
IDS = torch.tensor([[2, 7, 11, 13, 40, 30, 22, 3], [2, 9, 9, 21, 3, 1, 1, 1]])
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """packed(kind, values) -> directory of a packed model."""
    done: dict[tuple[str, str], Path] = {}

    def pack(kind: str, values: str) -> Path:
        if (kind, values) not in done:
            torch.manual_seed(0)
            place = tmp_path_factory.mktemp(f"{kind}_{values}")
            model = MODELS[kind]().eval()
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
            model.save_pretrained(place / "float")
            convert(place / "float", place / "packed", values=values, progress=False)
            done[kind, values] = place / "packed"
        return done[kind, values]

    return pack


def export(directory: Path, target: Path, form: Any = "qdq") -> Path:
    from sparse_runtime.integrations.onnx import export_onnx

    return export_onnx(directory, target, form)


def run_onnx(path: Path) -> dict[str, Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
    given = {i.name: feed[i.name].numpy() for i in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, given)), strict=True))


def relative(one: Tensor, other: Tensor) -> float:
    """Over real tokens; what a graph computes at padding means nothing."""
    if one.shape[:2] == MASK.shape:
        one, other = one[MASK.bool()], other[MASK.bool()]
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", MODELS)
def test_float_models_run_alike(kind: str, packed: Callable[..., Path], tmp_path: Path) -> None:
    directory = packed(kind, "fp32")
    found = run_onnx(export(directory, tmp_path / "onnx"))
    assert list(found) == OUTPUTS.get(kind, ["logits"])
    with torch.no_grad():
        expected = SparseModel.from_pretrained(directory, backend="reference")(IDS, MASK)
    for name, value in found.items():
        assert relative(value, expected[name]) < 1e-5, name


@pytest.mark.parametrize("kind", MODELS)
def test_graphs_open_as_what_was_packed(
    kind: str, packed: Callable[..., Path], tmp_path: Path
) -> None:
    directory = packed(kind, "int8")
    export(directory, tmp_path / "onnx", "dynamic")
    finalise = {"activations": "dynamic"}
    convert(tmp_path / "onnx", tmp_path / "again", finalise=finalise, progress=False)
    with torch.no_grad():
        one, two = (
            SparseModel.from_pretrained(place, backend="reference")(IDS, MASK)
            for place in (directory, tmp_path / "again")
        )
    assert list(one) == list(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_dynamic_layers_are_refused_or_take_one_scale(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    directory = packed("labels", "int8")
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query.*form='dynamic'"):
        export(directory, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert not list(tmp_path.iterdir())
    found = run_onnx(export(directory, tmp_path / "onnx", "dynamic"))["logits"]
    with torch.no_grad():
        expected = SparseModel.from_pretrained(directory, backend="reference")(IDS, MASK).logits
    assert 0 < relative(found, expected) < 0.05


def test_pruned_layers_and_norms_without_statistics(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    model = store.load(packed("bert", "fp32"))
    gone = [name for name in model.linears if name.startswith("encoder.layer.1.attention.")]
    for name in gone:
        del model.linears[name]
    for part in ("weight", "bias"):
        del model.tensors[f"encoder.layer.1.attention.output.LayerNorm.{part}"]
    model.absent = ("encoder.layer.1.attention",)
    model.config = model.config | {"layer_norm_type": "no_norm"}
    store.save(model, tmp_path / "packed")
    found = run_onnx(export(tmp_path / "packed", tmp_path / "onnx"))["last_hidden_state"]
    with torch.no_grad():
        runtime = SparseModel.from_pretrained(tmp_path / "packed", backend="reference")
        assert relative(found, runtime(IDS, MASK).last_hidden_state) < 1e-5


def test_arguments_and_targets(packed: Callable[..., Path], tmp_path: Path) -> None:
    directory = packed("bert", "fp32")
    with pytest.raises(ValueError, match="expected 'qdq' or 'dynamic'"):
        export(directory, tmp_path / "onnx", "float")
    with pytest.raises(TypeError, match="packed_dir: expected a path, got NoneType"):
        export(None, tmp_path / "onnx")
    with pytest.raises(ValueError, match="out_dir: expected a path, got an empty string"):
        export(directory, "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="a new or an empty directory"):
        export(directory, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    path = export(directory, tmp_path / "empty")
    assert path == tmp_path / "empty" / "model.onnx"
    config = json.loads((tmp_path / "empty" / "config.json").read_text())
    assert "sparse_runtime" not in config
    assert config["hidden_size"] == 32
    assert open_checkpoint(tmp_path / "empty").config == config


def test_sizes_are_symbolic(packed: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(export(packed("mpnet", "fp32"), tmp_path / "onnx"))
    for given in model.graph.input:
        names = [size.dim_param for size in given.type.tensor_type.shape.dim]
        assert names == ["batch_size", "sequence_length"]
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert all(np.prod(tensor.dims) < 2**20 for tensor in model.graph.initializer)
