"""nn_pruning's hybrid and block-sparse models: pruned_heads, zero neurons, norms or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.removed_heads import export_removed_heads

LAYER = "bert.encoder.layer"
PRUNED = {0: [1, 3], 2: [0], 3: [0, 1, 2]}  # layer 1 keeps its four heads


def masks_of(masks: dict[str, Tensor], pruned: dict[int, list[int]]) -> dict[str, Tensor]:
    for layer, heads in pruned.items():
        masks["head_z"][layer, heads] = 0
    return masks


def hybrid(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every layer's neurons 3 to 20 are zero rows and columns."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    for i in range(4):
        for part in ("weight", "bias"):
            changed[f"{LAYER}.{i}.intermediate.dense.{part}"][3:21] = 0
        changed[f"{LAYER}.{i}.output.dense.weight"][:, 3:21] = 0
    return changed


def blocks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of the 32x32 blocks of each matrix in the layers are zero."""
    generator = torch.Generator().manual_seed(3)
    changed = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and f"{LAYER}." in name:
            kept = torch.rand(tensor.shape[0] // 32, tensor.shape[1] // 32, generator=generator)
            kept = (kept > 0.5).repeat_interleave(32, 0).repeat_interleave(32, 1)
            changed[name] = torch.where(kept, tensor, 0)
    return changed


def optimized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, with norms that scale down: nothing else keeps numbers small without statistics."""
    scaled = {n: t * 0.4 if "LayerNorm.weight" in n else t for n, t in tensors.items()}
    return hybrid(scaled)


VARIANTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "hybrid": (hybrid, {}),
    "opt": (optimized, {"hidden_act": "relu", "layer_norm_type": "no_norm"}),
    # Heads of 64, two blocks each, as in BERT.
    "block_sparse": (blocks, {"hidden_size": 256, "intermediate_size": 128}),
}


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_models_run_as_the_masked_network(
    variant: str, cut: bool, whole: Any, network: Any, runs_as: Callable[..., Any], tmp_path: Path
) -> None:
    change, fields = VARIANTS[variant]
    model = whole("BertForQuestionAnswering", **fields)
    model.tensors = change(model.tensors)
    export_removed_heads(tmp_path / "source", model.config, model.tensors, PRUNED, cut=cut)
    expected = network(model, masks_of(model.masks(), PRUNED)).outputs()
    report = runs_as(tmp_path / "source", expected, network(model).outputs())
    (found,) = report.recognised
    assert found.layout == "removed heads (nn_pruning)"
    assert ("no_norm" in found.why) == (variant == "opt")
    assert report.steps[0].startswith("6 heads of 3 layers")
    cropped = {layer.name: layer for layer in report.cropped}
    if variant != "block_sparse":
        assert {layer.neurons for layer in cropped.values()} == {18}
        heads = {i: list(cropped[f"{LAYER}.{i}"].heads) for i in range(4)}
        assert heads == ({i: [] if cut else PRUNED.get(i, []) for i in range(4)})
    elif cut:
        query = next(layer for layer in report.layers if "0.attention.self.query" in layer.name)
        assert query.shape == (128, 256)
        assert query.structure == "block:32x32"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("list", {"0": [1], "2": [0], "3": [0, 1, 2]}, r"layer.0: .* leaves 3, but .* hold 2"),
        ("list", {"0": [1, 3], "3": [0, 1, 2]}, r"layer.2: .* \[\] of 4.* leaves 4, .* hold 3"),
        ("list", {"0": [1, 3], "1": [2], "2": [0], "3": [0, 1, 2]}, "head 2 in pruned_heads, but"),
        ("list", {"0": [1, 9]}, "expected lists of heads below 4 for layers below 4"),
        ("list", {"7": [1]}, "layers below 4"),
        ("list", ["1"], "expected lists of heads"),
        ("drop", f"{LAYER}.1.attention.self.key.weight", "layer.1: expected .* got no .*self.key"),
        ("cut", f"{LAYER}.1.attention.self.key.weight", "layer.1: expected one number of heads"),
    ],
)
def test_lists_that_contradict_the_tensors_are_refused_by_layer(
    name: str, change: Any, said: str, whole: Any, tmp_path: Path
) -> None:
    model = whole("BertForQuestionAnswering")
    export_removed_heads(tmp_path, model.config, model.tensors, PRUNED, cut=True)
    tensors = torch.load(tmp_path / "pytorch_model.bin")
    if name == "drop":
        del tensors[change]
    elif name == "cut":
        tensors[change] = tensors[change][:36]
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"pruned_heads": change}))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=said):
        # Whether a head is zero shows when it is read.
        open_checkpoint(tmp_path).tensors[f"{LAYER}.1.attention.output.dense.weight"]


def test_a_head_that_nobody_reads_or_that_gives_zeros_may_be_listed(
    whole: Any, tmp_path: Path
) -> None:
    model = whole("BertForQuestionAnswering")
    name = f"{LAYER}.1.attention.output.dense.weight"
    unread = model.tensors | {name: model.tensors[name].clone()}
    unread[name][:, :12] = 0
    export_removed_heads(tmp_path, model.config, unread, {}, cut=True)
    config = model.config | {"pruned_heads": {"1": [0]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.tensors[name], unread[name])
    assert checkpoint.config["pruned_heads"] == {}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pruned_heads": {"1": [1]}}))
    with pytest.raises(CheckpointError, match=r"layer.1: .* lists head 1 .* not zero"):
        open_checkpoint(tmp_path).tensors[name]


def test_a_layer_of_zero_heads_has_its_attention_still(
    whole: Any, network: Any, runs_as: Callable[..., Any], tmp_path: Path
) -> None:
    """Its bias and norm run; without either it would be CoFi's."""
    model = whole("BertForQuestionAnswering")
    export_removed_heads(tmp_path / "s", model.config, model.tensors, {1: [0, 1, 2, 3]}, cut=False)
    plain = network(model).outputs()
    model.tensors[f"{LAYER}.1.attention.output.dense.weight"].zero_()
    report = runs_as(tmp_path / "s", network(model).outputs(), plain)
    assert [found.layout for found in report.recognised] == ["removed heads (nn_pruning)"]
    assert [layer.heads for layer in report.cropped] == [(1, 2, 3)]


def test_an_empty_list_is_no_layout(whole: Any, tmp_path: Path) -> None:
    model = whole("BertForQuestionAnswering")
    export_removed_heads(tmp_path, model.config, model.tensors, {}, cut=True)
    assert not open_checkpoint(tmp_path).recognised


def test_an_attention_that_is_not_known_is_refused(whole: Any, tmp_path: Path) -> None:
    model = whole("BertModel")
    renamed = {n.replace("attention.self", "attention.mine"): t for n, t in model.tensors.items()}
    renamed = {n.replace("attention.output.dense", "attention.o"): t for n, t in renamed.items()}
    export_removed_heads(tmp_path, model.config | {"pruned_heads": {}}, renamed, {}, cut=True)
    config = model.config | {"pruned_heads": {"0": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pruned_heads, but the file has no layers such as"):
        open_checkpoint(tmp_path)
