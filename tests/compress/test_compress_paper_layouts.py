"""A trained model in each paper's own files opens as the model that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse_runtime as sr
from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.compress import (
    Pattern,
    attach_fake_quant,
    attach_masks,
    encoder_linears,
    export_paper_layout,
    layers,
    read_quantization,
)
from sparse_runtime.compress.masks import WeightTransform, original_weight
from sparse_runtime.spec import ValueSpec
from sparse_runtime.store import load

IDS = torch.arange(12).view(2, 6)
MASK = torch.ones_like(IDS)
QUERY = "bert.encoder.layer.0.attention.self.query"


def trained(model: nn.Module, pattern: str | None, **quantization: Any) -> nn.Module:
    """Mask by magnitude, move the weights below the masks as Adam does, quantize."""
    linears = encoder_linears(model)
    if pattern is not None:
        parsed = Pattern.parse(pattern)
        masks = {n: parsed.mask(li.weight.detach().abs()) for n, li in linears.items()}
        attach_masks(linears, masks)
    if quantization:
        attach_fake_quant(linears, **quantization)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=IDS, attention_mask=MASK)[0].square().sum().backward()
        optimizer.step()
    return model.eval()


def runs_as_trained(model: nn.Module, source: Path, options: dict[str, Any], out: Path) -> None:
    """Packed in float32, or in its own integers, the files give the model's outputs."""
    values = {} if read_quantization(model) else {"values": "fp32"}
    sr.convert(source, out, finalise=options, progress=False, **values)
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK)[0]
        found = sr.SparseModel.from_pretrained(out)(input_ids=IDS, attention_mask=MASK)[0]
    tolerance = 1e-5 if values else 1e-2
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("layout", "pattern", "recognised"),
    [
        ("prune-ofa", "unstructured@0.85", ["Intel Model-Compression-Research"]),
        ("sparsebert", "unstructured@0.95", ["SparseBERT or CoFi training model"]),
        ("group-lasso", "block:16x1@0.5", []),
        ("nxm", "2:4", ["NxMiFormer"]),
        ("nxm", "1:4", ["NxMiFormer"]),
        ("cap", "unstructured@0.97", ["movement pruning"]),
    ],
)
def test_pruned_floats_open_as_trained(
    layout: str, pattern: str, recognised: list[str], make_model, tmp_path: Path
) -> None:
    model = trained(make_model("bert"), pattern)
    options = export_paper_layout(model, tmp_path / "out", layout=layout)
    checkpoint = open_checkpoint(tmp_path / "out", finalise=options)
    assert [found.layout for found in checkpoint.recognised] == recognised
    for name, linear in encoder_linears(model).items():
        assert torch.equal(checkpoint.tensors[f"{name}.weight"], linear.weight.detach())
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


def test_raw_weights_are_those_below_the_masks(make_model, tmp_path: Path) -> None:
    model = trained(make_model("bert"), "unstructured@0.85")
    export_paper_layout(model, tmp_path / "out", layout="prune-ofa")
    raw = torch.load(tmp_path / "out" / "raw_pytorch_model.bin", weights_only=True)
    below = original_weight(model.get_submodule(QUERY)).detach()
    assert torch.equal(raw[f"{QUERY}.weight_original"], below)
    assert below.count_nonzero() == below.numel()
    assert f"{QUERY}.weight" not in raw
    # Beside it lies what transformers opens, as the package leaves both.
    plain = open_checkpoint(tmp_path / "out")
    assert plain.is_plain
    assert torch.equal(plain.tensors[f"{QUERY}.weight"], model.get_submodule(QUERY).weight.detach())


@pytest.mark.parametrize("outputs", [(), ("query", "key", "intermediate.dense")])
def test_static_quantization_opens_as_prune_ofa_qat(
    outputs: tuple[str, ...], make_model, tmp_path: Path
) -> None:
    model = make_model("bert")
    requantized = [n for n in encoder_linears(model) if outputs and n.endswith(outputs)]
    model = trained(
        model, "unstructured@0.85", weights=ValueSpec("int8", "tensor"), outputs=requantized
    )
    options = export_paper_layout(model, tmp_path / "out", layout="prune-ofa-qat")
    checkpoint = open_checkpoint(tmp_path / "out", finalise=options)
    assert [f.layout for f in checkpoint.recognised] == ["Model-Compression-Research QAT"]
    for name, stated in read_quantization(model).items():
        found = checkpoint.linears[name]
        weight = model.get_submodule(name).weight.detach()
        assert torch.equal(found.load().weight, stated.integers(name, weight))
        assert torch.equal(found.load().scales, stated.scales)
        assert (found.activations, found.outputs) == (stated.activations, stated.outputs)
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


@pytest.mark.parametrize(
    ("pattern", "values"), [("2:4", "int4 chunk:16"), (None, "int8 tensor"), ("2:4", "int8 tensor")]
)
def test_nxm_projects_the_trained_weights(
    pattern: str | None, values: str, make_model, tmp_path: Path
) -> None:
    weights = ValueSpec.parse(*values.split())
    model = trained(make_model("bert"), pattern, weights=weights, activations="symmetric")
    options = export_paper_layout(model, tmp_path / "out", layout="nxm")
    sr.convert(tmp_path / "out", tmp_path / "packed", finalise=options, progress=False)
    for name, linear in load(tmp_path / "packed").linears.items():
        assert linear.packed.spec.values == weights
        expected = model.get_submodule(name).weight.detach()
        step = linear.packed.scales.max()
        # The paper's scale is up to 8/7 of ours: at most half a step of each away.
        assert (linear.packed.dequantize() - expected).abs().max() <= 1.01 * 8 / 7 * step
        if pattern is not None:
            assert str(linear.packed.spec.structure) == "2:4"


class Scored(WeightTransform):
    """A mask that is the highest scores, as movement pruning learns them."""

    def __init__(self, scores: torch.Tensor, share: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.register_buffer("mask", Pattern.parse(f"unstructured@{share}").mask(scores))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, weight, 0.0)


def test_learned_scores_travel_with_cap(make_model, tmp_path: Path) -> None:
    model = make_model("bert")
    for linear in encoder_linears(model).values():
        scored = Scored(torch.randn(linear.weight.shape), 0.9)
        nn.utils.parametrize.register_parametrization(linear, "weight", scored)
    options = export_paper_layout(model, tmp_path / "out", layout="cap")
    raw = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    query = model.get_submodule(QUERY)
    assert torch.equal(raw[f"{QUERY}.mask_scores"], query.parametrizations.weight[0].scores)
    assert torch.equal(raw[f"{QUERY}.weight"], original_weight(query))
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


def test_cap_is_of_bert_alone(make_model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cap': expected a model of type bert, got roberta"):
        export_paper_layout(make_model("roberta"), tmp_path / "out", layout="cap")


def test_scores_without_a_common_share_travel_with_cap_by_a_threshold(
    make_model, tmp_path: Path
) -> None:
    """32 of 1,024 and 47 of 1,536 are kept: no share keeps the very number of both."""
    model = make_model("bert")
    for i, linear in enumerate(encoder_linears(model).values()):
        # Each matrix' scores around another value: as they are, no threshold serves all.
        scored = Scored(torch.randn(linear.weight.shape) + i, 0.9691)
        nn.utils.parametrize.register_parametrization(linear, "weight", scored)
    options = export_paper_layout(model, tmp_path / "out", layout="cap")
    assert options == {"threshold": 0.1}
    raw = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    transform = model.get_submodule(QUERY).parametrizations.weight[0]
    for side in (transform.mask, ~transform.mask):
        given, written = transform.scores[side], raw[f"{QUERY}.mask_scores"][side]
        torch.testing.assert_close(written - written.mean(), given - given.mean())
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


def test_matrices_of_different_sparsity_travel_with_cap_by_a_threshold(
    make_model, tmp_path: Path
) -> None:
    model = make_model("bert")
    linears = encoder_linears(model)
    masks = {
        name: Pattern.parse(f"unstructured@{0.5 + 0.03 * i:.2f}").mask(linear.weight.detach().abs())
        for i, (name, linear) in enumerate(linears.items())
    }
    attach_masks(linears, masks)
    options = export_paper_layout(model, tmp_path / "out", layout="cap")
    assert options == {"threshold": 0.1}
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_removed_heads_and_neurons_travel_with_cap_structured(
    family: str, make_model, tmp_path: Path
) -> None:
    model = make_model(family)
    linears, masks = encoder_linears(model), {}
    for layer in layers(model):
        # Head 1 of 2, and every third of 48 neurons; rows of queries stay, for nobody reads them.
        for part, rows, cols in (
            ("attention_output", slice(None), slice(16, 32)),
            ("value", slice(16, 32), slice(None)),
            ("ffn_out", slice(None), slice(0, None, 3)),
        ):
            mask = torch.ones_like(layer.linears[part].weight, dtype=torch.bool)
            mask[rows, cols] = False
            masks[layer.names[part]] = mask
    attach_masks({name: linears[name] for name in masks}, masks)
    for layer in layers(model):
        with torch.no_grad():
            layer.linears["value"].bias[16:] = 0
    options = export_paper_layout(model, tmp_path / "out", layout="cap-structured")
    checkpoint = open_checkpoint(tmp_path / "out", finalise=options)
    assert [f.layout for f in checkpoint.recognised] == ["CAP structured masks"]
    runs_as_trained(model, tmp_path / "out", options, tmp_path / "packed")


@pytest.mark.parametrize(
    ("layout", "pattern", "quantization", "match"),
    [
        ("snip", "2:4", {}, "expected one of prune-ofa"),
        ("sparsebert", "2:4", {"weights": ValueSpec("int8")}, "holds floats"),
        ("prune-ofa-qat", "2:4", {}, "expected fake-quantized layers, got none"),
        (
            "prune-ofa-qat",
            None,
            {"weights": ValueSpec("int8")},
            "one scale a tensor and static inputs, got int8, scales 'row'",
        ),
        ("prune-ofa-qat", None, {"weights": ValueSpec("int4", "tensor")}, "got int4"),
        ("nxm", "unstructured@0.5", {}, "expected masks that keep 2:4"),
        ("nxm", None, {}, "got neither"),
        ("nxm", None, {"weights": ValueSpec("int8", "row")}, "'tensor' or 'chunk:R', got 'row'"),
        # Zeros that no removed head or neuron explains.
        ("cap-structured", "unstructured@0.5", {}, "would open as another weight"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    layout: str,
    pattern: str | None,
    quantization: dict[str, Any],
    match: str,
    make_model,
    tmp_path: Path,
) -> None:
    model = trained(make_model("bert"), pattern, **quantization)
    with pytest.raises(ValueError, match=match):
        export_paper_layout(model, tmp_path / "out", layout=layout)
    assert not list(tmp_path.iterdir())
