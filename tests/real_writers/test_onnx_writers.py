"""ONNX graphs that torch.onnx exports and ONNX Runtime quantizes: opened, converted, compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.inspection import inspect

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnxruntime import quantization as ort_quantization  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
_SMALL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
_DISTILBERT = _SMALL | {"vocab_size": 50, "max_position_embeddings": 24}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "bert_labels": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "bert_words": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**_DISTILBERT)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, type_vocab_size=1)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
}
TOKEN_TYPES = ("bert", "bert_labels", "bert_words")
IDS = torch.randint(5, 50, (2, 8), generator=torch.Generator().manual_seed(1))


class FirstOutput(nn.Module):
    """What people wrap a model in to export it: every name gets one part more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)[0]


class Calibration(ort_quantization.CalibrationDataReader):
    def __init__(self, names: list[str]) -> None:
        draw = np.random.default_rng(0)
        self._batches: Iterator[dict[str, Any]] = (
            {name: _input(name, torch.from_numpy(ids)) for name in names}
            for ids in draw.integers(5, 50, (4, 2, 8))
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _input(name: str, ids: Tensor) -> Any:
    value = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return value.get(name, torch.zeros_like(ids)).numpy()


def names_of(kind: str) -> list[str]:
    return ["input_ids", "attention_mask", *(["token_type_ids"] if kind in TOKEN_TYPES else [])]


def build(kind: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():
        # Equal tensors are exported as one; none should be equal by chance here.
        parameter.data += torch.randn_like(parameter) * (0.1 if "weight" in name else 0.05)
    return model


class Written:
    """Exports and quantized forms of models, each written once."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.states: dict[str, dict[str, Tensor]] = {}

    def float(self, kind: str, attention: str = "eager", opset: int = 17) -> Path:
        directory = self._place / f"{kind}_{attention}_{opset}"
        if not directory.exists():
            model = build(kind, attention)
            directory.mkdir()
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(directory)
            names = names_of(kind)
            inputs = tuple(torch.from_numpy(_input(name, IDS)) for name in names)
            torch.onnx.export(
                FirstOutput(model),
                inputs,
                directory / "model.onnx",
                input_names=names,
                dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names},
                opset_version=opset,
                dynamo=False,
            )
            self.states[directory.name] = {n: t.clone() for n, t in model.state_dict().items()}
        return directory

    def quantized(
        self, form: str, write: Callable[[Path, Path], None], kind: str, attention: str = "eager"
    ) -> Path:
        source = self.float(kind, attention)
        directory = self._place / f"{source.name}_{form}"
        if not directory.exists():
            directory.mkdir()
            (directory / "config.json").write_bytes((source / "config.json").read_bytes())
            write(source / "model.onnx", directory / "model.onnx")
        self.states[directory.name] = self.states[source.name]
        return directory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # ONNX Runtime warns of every node
    yield Written(tmp_path_factory.mktemp("written"))
    root.setLevel(level)


def dynamic(weight: str, per_channel: bool) -> Callable[[Path, Path], None]:
    return lambda source, target: ort_quantization.quantize_dynamic(
        source,
        target,
        per_channel=per_channel,
        weight_type=getattr(ort_quantization.QuantType, weight),
    )


def static(
    form: str, weight: str, per_channel: bool, names: list[str], **extra: Any
) -> Callable[[Path, Path], None]:
    return lambda source, target: ort_quantization.quantize_static(
        source,
        target,
        Calibration(names),
        quant_format=getattr(ort_quantization.QuantFormat, form),
        per_channel=per_channel,
        activation_type=ort_quantization.QuantType.QUInt8,
        weight_type=getattr(ort_quantization.QuantType, weight),
        **extra,
    )


def run_onnx(directory: Path, kind: str) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # As the file states it: optimizations move quantizers.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        directory / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {n: _input(n, IDS) for n in names_of(kind)})[0])


def run_packed(directory: Path, kind: str) -> Tensor:
    model = SparseModel.from_pretrained(directory, backend="reference")
    with torch.no_grad():
        return model(**{n: torch.from_numpy(_input(n, IDS)) for n in names_of(kind)})[0]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def dense_weights(directory: Path, finalise: dict[str, str] | None) -> dict[str, Tensor]:
    """All that a checkpoint holds, integers dequantized."""
    checkpoint = open_checkpoint(directory, finalise=finalise)
    found = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    found |= {other: found[kept] for other, kept in checkpoint.aliases.items()}
    for name, linear in checkpoint.linears.items():
        values = linear.load()
        zero = torch.zeros(1) if values.zero_points is None else values.zero_points
        columns = values.scales.reshape(-1, 1)
        found[f"{name}.weight"] = (values.weight - zero.float().reshape(-1, 1)) * columns
    return found


@pytest.mark.parametrize(
    ("kind", "attention", "opset"),
    [
        ("bert", "eager", 17),
        # The root of the scale on both sides, LayerNorm in parts.
        ("bert_labels", "sdpa", 14),
        # A tied decoder, of which the export has a transposed copy.
        ("bert_words", "eager", 17),
        ("distilbert", "sdpa", 17),
        ("roberta", "eager", 17),
        # Biases by distance.
        ("mpnet", "eager", 17),
    ],
)
def test_float_exports_open_exactly(
    kind: str, attention: str, opset: int, written: Written
) -> None:
    directory = written.float(kind, attention, opset)
    found = dense_weights(directory, None)
    state = written.states[directory.name]
    # The wrapper returns no pooled output, so its export has no pooler.
    expected = {name for name in state if "pooler" not in name or kind == "bert_labels"}
    expected -= {name for name in state if name.endswith("position_ids")}
    assert expected <= set(found)
    for name in expected:
        assert torch.equal(found[name], state[name]), name


@pytest.mark.parametrize("weight", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_models_keep_their_integers(
    weight: str, per_channel: bool, written: Written, tmp_path: Path
) -> None:
    form = f"dynamic_{weight}_{per_channel}"
    directory = written.quantized(form, dynamic(weight, per_channel), "bert_labels")
    with pytest.raises(CheckpointError, match="--finalise activations=dynamic"):
        open_checkpoint(directory)
    finalise = {"activations": "dynamic"}
    checkpoint = open_checkpoint(directory, finalise=finalise)
    # Encoder, pooler and classifier.
    assert len(checkpoint.linears) == 14
    graph = onnx.load(directory / "model.onnx").graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    query = next(
        node
        for node in graph.node
        if node.name.endswith("layer.1/attention/self/query/MatMul_quant")
    )
    values = checkpoint.linears["bert.encoder.layer.1.attention.self.query"].load()
    zero = stored[query.input[3]].astype(np.int32).reshape(1, -1)
    mine = 0 if values.zero_points is None else values.zero_points.int().reshape(-1, 1)
    difference = stored[query.input[1]].astype(np.int32) - zero
    assert np.array_equal((values.weight.int() - mine).numpy(), difference.T)
    convert(directory, tmp_path / "packed", finalise=finalise, progress=False)
    packed = run_packed(tmp_path / "packed", "bert_labels")
    # A scale a token is finer than one for the batch, so this is close, and not equal.
    assert 0 < relative(packed, run_onnx(directory, "bert_labels")) < 0.05
    rows = inspect(directory, finalise=finalise).matrices
    assert any("layer.1.attention.self.query" in row.name for row in rows)


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "mpnet", "bert_words"])
def test_dynamic_models_of_other_families_run(kind: str, written: Written, tmp_path: Path) -> None:
    directory = written.quantized("dynamic", dynamic("QInt8", True), kind)
    finalise = {"activations": "dynamic"}
    convert(directory, tmp_path / "packed", finalise=finalise, progress=False)
    assert relative(run_packed(tmp_path / "packed", kind), run_onnx(directory, kind)) < 0.05


@pytest.mark.parametrize(
    ("form", "weight", "per_channel", "attention"),
    [
        ("QDQ", "QInt8", False, "eager"),
        # int32 biases with a scale an output.
        ("QDQ", "QInt8", True, "sdpa"),
        ("QOperator", "QInt8", False, "eager"),
        ("QOperator", "QUInt8", False, "eager"),
    ],
)
def test_static_models_whose_every_value_is_quantized(
    form: str, weight: str, per_channel: bool, attention: str, written: Written, tmp_path: Path
) -> None:
    name = f"{form}_{weight}_{per_channel}"
    write = static(form, weight, per_channel, names_of("bert_labels"))
    directory = written.quantized(name, write, "bert_labels", attention)
    with pytest.raises(CheckpointError, match="--finalise other_quantizers=drop"):
        open_checkpoint(directory)
    finalise = {"other_quantizers": "drop"}
    checkpoint = open_checkpoint(directory, finalise=finalise)
    assert len(checkpoint.linears) == 14
    assert list(checkpoint.attention) == [f"bert.encoder.layer.{layer}" for layer in (0, 1)]
    for linear in checkpoint.linears.values():
        assert linear.activations is not None
        assert linear.activations.scheme == "static"
    found = dense_weights(directory, finalise)
    state = written.states[directory.name]
    assert set(state) <= set(found)
    for tensor in state:
        # Half a step of 8 bits over a range of at most 1.
        assert (found[tensor] - state[tensor]).abs().max() < 0.01, tensor
    convert(directory, tmp_path / "packed", finalise=finalise, progress=False)
    packed = run_packed(tmp_path / "packed", "bert_labels")
    assert relative(packed, run_onnx(directory, "bert_labels")) < 0.1


def test_static_products_alone(written: Written, tmp_path: Path) -> None:
    """Linear layers and attention in integers; the residuals read quantized values too."""
    extra = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    names = names_of("bert")
    write = static(
        "QDQ", "QInt8", True, names, op_types_to_quantize=["MatMul", "Gemm"], extra_options=extra
    )
    directory = written.quantized("products", write, "bert")
    with pytest.raises(CheckpointError, match="read by Add") as caught:
        open_checkpoint(directory)
    # One behind each norm but the last.
    assert "4 quantizers" in str(caught.value)
    finalise = {"other_quantizers": "drop"}
    convert(directory, tmp_path / "packed", finalise=finalise, progress=False)
    assert relative(run_packed(tmp_path / "packed", "bert"), run_onnx(directory, "bert")) < 0.05


def test_graphs_whose_nodes_have_no_names(written: Written) -> None:
    def forget(source: Path, target: Path) -> None:
        dynamic("QInt8", True)(source, target)
        model = onnx.load(target)
        for number, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{number}"
        onnx.save(model, target)

    finalise = {"activations": "dynamic"}
    named = written.quantized("dynamic", dynamic("QInt8", True), "bert")
    expected = dense_weights(named, finalise)
    found = dense_weights(written.quantized("nameless", forget, "bert"), finalise)
    assert {name.removeprefix("model.") for name in found} == set(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name.removeprefix("model.")]), name


def test_the_exporter_through_torch_export(tmp_path: Path) -> None:
    """It shares equal tensors (both norms' weights of ones) and keeps modules as metadata."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)).eval()
    model.config.save_pretrained(tmp_path)
    inputs = tuple(torch.from_numpy(_input(name, IDS)) for name in names_of("bert"))
    axes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("sequence", max=24)}
    program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=(axes,) * 3)
    program.save(tmp_path / "model.onnx")
    state = model.state_dict()

    def assert_opens(finalise: dict[str, str] | None, error: float) -> None:
        found = dense_weights(tmp_path, finalise)
        assert set(found) == {name for name in state if not name.endswith("position_ids")}
        for name, tensor in found.items():
            assert (tensor - state[name]).abs().max() <= error, name

    assert_opens(None, 0)
    dynamic("QInt8", True)(tmp_path / "model.onnx", tmp_path / "model.onnx")
    assert_opens({"activations": "dynamic"}, 0.01)
