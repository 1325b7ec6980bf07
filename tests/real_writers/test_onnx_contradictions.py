"""Exports of torch.onnx that say something else than config.json, or have lost what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

pytest.importorskip("onnx")

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
_SMALL = {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
IDS = torch.randint(5, 50, (2, 8), generator=torch.Generator().manual_seed(1))


class FirstOutput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask)[0]


def export(model: PreTrainedModel, attention: str, opset: int, directory: Path) -> None:
    model.eval().set_attn_implementation(attention)
    model.config.save_pretrained(directory)
    torch.onnx.export(
        FirstOutput(model),
        (IDS, torch.ones_like(IDS)),
        directory / "model.onnx",
        input_names=["input_ids", "attention_mask"],
        dynamic_axes={n: {0: "batch", 1: "tokens"} for n in ("input_ids", "attention_mask")},
        opset_version=opset,
        dynamo=False,
    )


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("model", "attention", "opset", "key"),
    [
        (lambda: BertModel(BertConfig(**SIZES)), "sdpa", 14, "num_attention_heads"),
        (lambda: DistilBertModel(DistilBertConfig(**_SMALL)), "sdpa", 17, "n_heads"),
        (lambda: MPNetModel(MPNetConfig(**SIZES)), "eager", 17, "num_attention_heads"),
    ],
)
def test_another_number_of_heads(
    model: Any, attention: str, opset: int, key: str, tmp_path: Path
) -> None:
    export(model(), attention, opset, tmp_path)
    open_checkpoint(tmp_path)
    change_config(tmp_path, **{key: 2})
    with pytest.raises(CheckpointError, match=r"heads have 8 features, .* in 2 heads"):
        open_checkpoint(tmp_path)


def test_another_epsilon_of_norms_in_parts(tmp_path: Path) -> None:
    export(BertModel(BertConfig(**SIZES)), "eager", 14, tmp_path)
    change_config(tmp_path, layer_norm_eps=1e-5)
    with pytest.raises(CheckpointError, match=r"adds epsilon 1e-12, config\.json states .* 1e-05"):
        open_checkpoint(tmp_path)


def test_positions_that_an_export_without_dynamic_shapes_has_folded(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = BertModel(BertConfig(**SIZES)).eval()
    model.config.save_pretrained(tmp_path)
    program = torch.onnx.export(model, (IDS, torch.ones_like(IDS)), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"constant of shape \[\d, 8, 32\].*dynamic axes"):
        open_checkpoint(tmp_path)
