"""Whole models to prune, and a plain PyTorch forward pass that masks instead of cutting."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime import SparseModel, inspect
from sparse_runtime.tools.convert import convert

# 48 channels in 4 heads of 12, 40 neurons: no two sizes are equal, none is a multiple of 16.
SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
IDS = torch.arange(9) * 7 % 49 + 1


@dataclass
class Whole:
    """A model before pruning."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    base: str

    def masks(self) -> dict[str, Tensor]:
        """CoFi's five, all 1."""
        layers, heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]
        return {
            "head_z": torch.ones(layers, heads),
            "head_layer_z": torch.ones(layers),
            "intermediate_z": torch.ones(layers, self.config["intermediate_size"]),
            "mlp_z": torch.ones(layers),
            "hidden_z": torch.ones(self.config["hidden_size"]),
        }


def make_whole(name: str = "BertForSequenceClassification", **fields: Any) -> Whole:
    """A random model of a transformers class whose biases and norms are random too."""
    family = "Roberta" if name.startswith("Roberta") else "Bert"
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **fields}, num_labels=2)
    torch.manual_seed(1)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items() if "_ids" not in n}
    written = json.loads(config.to_json_string()) | {"architectures": [name]}
    base = "" if name.endswith("Model") else f"{family.lower()}."
    return Whole(written | fields, tensors, base)


@dataclass
class Network:
    """BERT in plain PyTorch; what the masks have at 0 is left out of sums and statistics."""

    whole: Whole
    masks: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = self.whole.masks() | self.masks
        self.kept = self.masks["hidden_z"] != 0

    def states(self, ids: Tensor = IDS) -> Tensor:
        """[tokens, hidden size]; removed channels are 0."""
        config, act = self.whole.config, getattr(F, self.whole.config["hidden_act"])
        first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
        table = "embeddings.{}_embeddings.weight"
        x = self._get(table.format("word"))[ids] + self._get(table.format("token_type"))[0]
        x = x + self._get(table.format("position"))[torch.arange(first, first + len(ids))]
        x = self._norm(x, "embeddings.LayerNorm")
        for i in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}."
            heads = self.masks["head_z"][i] * self.masks["head_layer_z"][i]
            if heads.any():
                y = self._attention(x, layer, heads)
                y = self._linear(y, f"{layer}attention.output.dense")
                x = self._norm(x + y, f"{layer}attention.output.LayerNorm")
            neurons = self.masks["intermediate_z"][i] * self.masks["mlp_z"][i]
            if neurons.any():
                y = act(self._linear(x, f"{layer}intermediate.dense")) * neurons
                x = self._norm(
                    x + self._linear(y, f"{layer}output.dense"), f"{layer}output.LayerNorm"
                )
        return x

    def outputs(self, ids: Tensor = IDS) -> Tensor:
        """Logits of the class in config.json, or the hidden states' channels that are left."""
        x, head = self.states(ids), self.whole.tensors
        if "qa_outputs.weight" in head:
            return F.linear(x, head["qa_outputs.weight"], head["qa_outputs.bias"])
        if "classifier.dense.weight" in head:
            x = torch.tanh(
                F.linear(x[0], head["classifier.dense.weight"], head["classifier.dense.bias"])
            )
            return F.linear(x, head["classifier.out_proj.weight"], head["classifier.out_proj.bias"])
        if "classifier.weight" in head:
            x = torch.tanh(self._linear(x[0], "pooler.dense"))
            return F.linear(x, head["classifier.weight"], head["classifier.bias"])
        return x[:, self.kept]

    def _attention(self, x: Tensor, layer: str, mask: Tensor) -> Tensor:
        q, k, v = (
            self._linear(x, f"{layer}attention.self.{name}").view(len(x), len(mask), -1)
            for name in ("query", "key", "value")
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        context = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return (context * mask[:, None]).flatten(1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._get(f"{name}.weight"), self._get(f"{name}.bias")
        if self.whole.config.get("layer_norm_type") == "no_norm":
            return x * weight + bias
        y, kept = torch.zeros_like(x), self.kept
        eps = self.whole.config["layer_norm_eps"]
        y[:, kept] = F.layer_norm(x[:, kept], (int(kept.sum()),), weight[kept], bias[kept], eps)
        return y

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._get(f"{name}.weight"), self._get(f"{name}.bias"))

    def _get(self, name: str) -> Tensor:
        return self.whole.tensors[f"{self.whole.base}{name}"]


def packed_outputs(directory: Path) -> Tensor:
    out = SparseModel.from_pretrained(directory)(input_ids=IDS.unsqueeze(0))
    if "start_logits" in out:
        return torch.stack([out.start_logits[0], out.end_logits[0]], dim=-1)
    return out["logits"][0] if "logits" in out else out["last_hidden_state"][0]


@pytest.fixture
def runs_as(tmp_path: Path) -> Callable[..., Any]:
    """runs_as(directory, expected, plain) -> the report: inspected and converted alike; in float32
    it gives ``expected``, which ``plain``, the whole model's, is far from; int8 is close to it."""

    def compare(directory: Path, expected: Tensor, plain: Tensor | None = None) -> Any:
        reports = {}
        for values in ("fp32", "int8"):
            reports[values] = convert(directory, tmp_path / values, values=values, progress=False)
        inspected, report = inspect(directory), reports["fp32"]
        assert (inspected.recognised, inspected.steps) == (report.recognised, report.steps)
        scale = expected.abs().max()
        assert (packed_outputs(tmp_path / "fp32") - expected).abs().max() < 1e-5 * scale
        assert (packed_outputs(tmp_path / "int8") - expected).abs().max() < 0.1 * scale
        if plain is not None:
            assert (plain - expected).abs().max() > 0.01 * scale
        return report

    return compare


@pytest.fixture(scope="session")
def whole() -> Callable[..., Whole]:
    return make_whole


@pytest.fixture(scope="session")
def network() -> type[Network]:
    return Network
