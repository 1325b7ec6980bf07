"""CoFi's published models: smaller hidden size, ragged layers, halves that are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime import SparseModel
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.store import load
from sparse_runtime.testing.exporters.cofi import export_cofi

LAYER = "bert.encoder.layer"


def pruned(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer 0: two heads, 23 neurons. 1: no attention. 2: neither half. 3: one head, no neurons."""
    masks["head_z"][0, [1, 3]] = 0
    masks["head_z"][1] = 0
    masks["head_layer_z"][2] = 0
    masks["head_z"][3, :3] = 0
    masks["intermediate_z"][0, 5:22] = 0
    masks["mlp_z"][2] = 0
    masks["intermediate_z"][3] = 0
    masks["hidden_z"][[0, 7, 8, 30, 47]] = 0
    return masks


CLASSES = ("BertForSequenceClassification", "BertForQuestionAnswering", "BertModel")


@pytest.mark.parametrize("name", [*CLASSES, "RobertaForSequenceClassification"])
def test_published_models_run_as_the_masked_network(
    name: str, whole: Any, network: Any, runs_as: Callable[..., Any], tmp_path: Path
) -> None:
    model = whole(name)
    masks = pruned(model.masks())
    export_cofi(tmp_path / "source", model.config, model.tensors, masks)
    # The whole base model has more channels, so there is nothing to subtract.
    plain = None if name.endswith("Model") else network(model).outputs()
    report = runs_as(tmp_path / "source", network(model, masks).outputs(), plain)
    assert [found.layout for found in report.recognised] == [
        "SparseBERT or CoFi training model",
        "CoFi",
    ]
    packed = load(tmp_path / "fp32")
    stack = f"{model.base}encoder.layer"
    assert packed.head_size == 12
    assert packed.config["hidden_size"] == 43
    assert packed.config["architectures"] == [name]
    absent = ("1.attention", "2.attention", "2.ffn", "3.ffn")
    assert packed.absent == tuple(f"{stack}.{half}" for half in absent)
    assert packed.linears[f"{stack}.0.attention.self.query"].packed.spec.shape == (24, 43)
    assert packed.linears[f"{stack}.0.output.dense"].packed.spec.shape == (43, 23)
    # The norms of absent halves lie in the file.
    assert f"{stack}.3.output.LayerNorm.weight" in report.dropped
    assert "hidden_size is 43" in " ".join(report.steps)


def test_pooler_keeps_the_outputs_of_the_whole_model(whole: Any, tmp_path: Path) -> None:
    from sparse_runtime.tools.convert import convert

    model = whole()
    export_cofi(tmp_path / "source", model.config, model.tensors, pruned(model.masks()))
    convert(tmp_path / "source", tmp_path / "out", progress=False)
    packed = load(tmp_path / "out")
    assert packed.tensors["bert.pooler.dense.weight"].shape == (48, 43)
    packed.tensors["bert.pooler.dense.weight"] = torch.zeros(40, 43)
    with pytest.raises(
        ValueError, match=r"pooler.dense.weight expected \[43, 43\], got \[40, 43\]"
    ):
        SparseModel.from_packed(packed)


def rewrite(directory: Path, *dropped: str, **fields: Any) -> None:
    """Drop tensors whose names begin so, and change config.json."""
    tensors = torch.load(directory / "pytorch_model.bin")
    left = {name: t for name, t in tensors.items() if not name.startswith(dropped)}
    assert len(left) < len(tensors) or not dropped
    torch.save(left if dropped else tensors, directory / "pytorch_model.bin")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


@pytest.fixture
def source(whole: Any, tmp_path: Path) -> Path:
    model = whole()
    export_cofi(tmp_path / "source", model.config, model.tensors, pruned(model.masks()))
    return tmp_path / "source"


def test_the_list_of_heads_proves_an_attention_without_its_norm(source: Path) -> None:
    rewrite(source, f"{LAYER}.1.attention.", f"{LAYER}.3.output.LayerNorm")
    assert len(open_checkpoint(source).absent) == 4
    # Without class names and list of heads, the norms that are left prove it, and the width of
    # queries that are not square shows the layout.
    rewrite(source, architectures=["BertForSequenceClassification"], pruned_heads={})
    with pytest.raises(CheckpointError, match=r"1.attention: expected .* got none, and nothing"):
        open_checkpoint(source)


def test_norms_alone_prove_what_was_pruned(source: Path) -> None:
    rewrite(source, architectures=["BertForSequenceClassification"], pruned_heads={})
    checkpoint = open_checkpoint(source)
    assert len(checkpoint.absent) == 4
    assert "43 hidden channels in tensors" in checkpoint.recognised[1].why


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        (
            f"{LAYER}.0.attention.self.key.",
            "layer.0: expected all or none .* got no .*self.key.bias",
        ),
        (
            f"{LAYER}.0.output.dense.bias",
            r"layer.0: expected all or none .* got no \S+0.output.dense.bias",
        ),
        (f"{LAYER}.0.attention.self", "layer.0: expected all or none"),
        (f"{LAYER}.2.", "layer.2.ffn: expected .* nothing shows that they were pruned"),
    ],
)
def test_half_a_sublayer_is_refused(dropped: str, said: str, source: Path) -> None:
    rewrite(source, dropped)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(source)


def test_attention_without_tensors_must_be_on_the_list(source: Path) -> None:
    rewrite(source, pruned_heads={"0": [1, 3], "1": [0, 1], "2": [0, 1, 2, 3], "3": [0, 1, 2]})
    with pytest.raises(CheckpointError, match=r"layer.1.attention: expected"):
        open_checkpoint(source)


def test_lists_that_grew_while_training_went_on(source: Path) -> None:
    before = open_checkpoint(source)
    # Layer 0 has two heads, and CoFi's loading has added the last ones to the list.
    every = [0, 1, 2, 3]
    rewrite(source, pruned_heads={"0": every, "1": every, "2": every, "3": [0, 1, 2]})
    checkpoint = open_checkpoint(source)
    assert checkpoint.absent == before.absent
    assert {*checkpoint.tensors} == {*before.tensors}
    assert "more heads of layers 0 than" in checkpoint.steps[-1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 47}, "hidden_size 47: expected .* a multiple of 4 heads"),
        ({"hidden_size": 40}, "hidden_size 40: expected .* at least the 43 channels"),
        ({"num_attention_heads": None}, "num_attention_heads: expected an integer from 1"),
        ({"pruned_heads": {"0": [4]}}, "pruned_heads: expected lists of heads below 4"),
        (
            {"pruned_heads": {"0": [0], "1": [0, 1, 2, 3], "2": [0, 1, 2, 3]}},
            "layer.0: .* leaves 3",
        ),
    ],
)
def test_configurations_of_other_models_are_refused(
    fields: dict[str, Any], said: str, source: Path
) -> None:
    rewrite(source, **fields)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(source)


def test_lists_of_whole_layers_are_no_growth(whole: Any, tmp_path: Path) -> None:
    model = whole()
    masks = pruned(model.masks())
    masks["head_z"][0] = 1
    export_cofi(tmp_path, model.config, model.tensors, masks)
    every = [0, 1, 2, 3]
    rewrite(tmp_path, pruned_heads={"0": [3], "1": every, "2": every, "3": [0, 1, 2]})
    with pytest.raises(CheckpointError, match=r"layer.0: .* lists .* \[3\] of 4.* tensors hold 4"):
        open_checkpoint(tmp_path)


def test_a_smaller_model_under_a_wrong_configuration_is_not_taken_for_it(
    whole: Any, tmp_path: Path
) -> None:
    model = whole("BertModel")
    export_cofi(tmp_path / "source", model.config, model.tensors, model.masks())
    tensors = torch.load(tmp_path / "source" / "pytorch_model.bin")
    del tensors["layer_transformation.weight"], tensors["layer_transformation.bias"]
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin")
    # 96 channels in 8 heads would be a model of which half was removed; 48 square ones are whole.
    wrong = {"architectures": ["BertModel"], "hidden_size": 96, "num_attention_heads": 8}
    rewrite(tmp_path / "source", **wrong, pruned_heads={})
    assert not open_checkpoint(tmp_path / "source").recognised
