"""NxMiFormer: unprojected weights, projected as the user's configuration says."""

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
from sparse_runtime.checkpoints.layouts.nxm_projection import (
    keep_largest,
    quantize_by_search,
    quantize_to_largest,
)
from sparse_runtime.spec import ActivationSpec, ValueSpec
from sparse_runtime.testing.exporters.nxm import export_nxm
from sparse_runtime.tools.convert import convert

MODULE = "bert.encoder.layer.0.output.dense"
TWO_OF_FOUR = {"N": 4, "M": 2}
INT4 = {"precision": 4, "chunk_size": 16, "norm": 2, "groups": 1}
ALL = TWO_OF_FOUR | INT4


def two_of_four(weight: Tensor) -> Tensor:
    """Independent of the reader: topk of each group."""
    groups = weight.view(weight.shape[0], -1, 4)
    mask = torch.zeros_like(groups).scatter(2, groups.abs().topk(2, dim=2).indices, 1.0)
    return (groups * mask).view_as(weight)


def fake_quantized(weight: Tensor, bits: int, rows: int) -> Tensor:
    """The training code's arithmetic, through the operator of torch that it calls."""
    chunks = weight.reshape(weight.shape[0] // rows, -1)
    largest = chunks.abs().max(-1).values
    steps = torch.where(largest != chunks.max(-1).values, 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    zeros = torch.zeros(len(chunks), dtype=torch.int32)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return torch.fake_quantize_per_channel_affine(
        chunks, largest / steps, zeros, 0, low, high
    ).view_as(weight)


def encoder_matrices(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, t in tensors.items() if t.ndim == 2 and ".layer." in name]


def test_masks_alone_give_floats(
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
    runs_like: Callable[..., None],
) -> None:
    file = tmp_path / "compression.json"
    export_nxm(tmp_path / "source", model_config, untied, "NxM", file, **TWO_OF_FOUR)
    expected = untied | {name: two_of_four(untied[name]) for name in encoder_matrices(untied)}
    checkpoint = open_checkpoint(tmp_path / "source", finalise={"nxm": str(file)})
    assert not checkpoint.linears
    holds(checkpoint, expected)
    assert checkpoint.steps == ("projected 12 modules: largest 2 of 4 inputs kept",)
    runs_like(tmp_path / "source", expected, {"nxm": file})


@pytest.mark.parametrize(
    ("kind", "bits", "rows"),
    [
        ("NxM_ADMM_STE", 4, 16),
        ("NxM_ADMM_STE", 8, -1),
        ("NxM_MOD_QUANT", 8, 32),
        ("NxM_QAT", 4, 1),
        ("STE", 8, 16),
        ("MOD_QUANT", 4, -1),
    ],
)
def test_quantized_modules_have_the_integers_of_training(
    kind: str,
    bits: int,
    rows: int,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    file, source = tmp_path / "c.json", tmp_path / "source"
    # 32 and 48 outputs: chunks of 32 fit the first alone.
    weights = untied if rows != 32 else {n: t for n, t in untied.items() if "intermediate" not in n}
    args = {"precision": bits, "chunk_size": rows, **TWO_OF_FOUR}
    export_nxm(source, model_config, weights, kind, file, **args)
    checkpoint = open_checkpoint(source, finalise={"nxm": str(file)})
    assert len(checkpoint.linears) == len(encoder_matrices(weights))
    for name in encoder_matrices(weights):
        linear = checkpoint.linears[name.removesuffix(".weight")]
        assert name not in checkpoint.tensors
        assert f"{name.removesuffix('weight')}bias" in checkpoint.tensors
        spec = ValueSpec(f"int{bits}", "tensor") if rows == -1 else None
        assert linear.values == (spec or ValueSpec(f"int{bits}", "chunk", rows))
        assert linear.activations == ActivationSpec("dynamic", "int8")
        stored = linear.load()
        masked = two_of_four(weights[name]) if kind.startswith("NxM") else weights[name]
        chunk = masked.shape[0] if rows == -1 else rows
        scales = stored.scales.repeat_interleave(chunk)[:, None]
        expected = fake_quantized(masked, bits, chunk)
        assert torch.equal(stored.weight * scales, expected)
        assert int(stored.weight.min()) >= -(2 ** (bits - 1))


def test_the_packed_model_keeps_integers_and_structure(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    file, source = tmp_path / "c.json", tmp_path / "source"
    export_nxm(source, model_config, untied, "NxM_ADMM_STE", file, **ALL)
    finalise = {"nxm": str(file)}
    report = convert(source, tmp_path / "out", finalise=finalise, progress=False)
    stored = open_checkpoint(source, finalise=finalise).linears
    assert {layer.name for layer in report.layers} == set(stored)
    assert all(layer.density <= 0.5 for layer in report.layers)
    assert any("largest magnitude / 127" in step for step in report.steps)
    # The packed model names the file it was projected by, and not where that lay.
    assert report.arguments["finalise"] == {"nxm": "c.json"}
    model = SparseModel.from_pretrained(tmp_path / "out")
    ids = torch.arange(24).view(2, 12) * 7 % 50
    from transformers import BertConfig, BertForMaskedLM

    dense = BertForMaskedLM(BertConfig.from_dict(model_config)).eval()
    projected = {n: fake_quantized(two_of_four(untied[n]), 4, 16) for n in encoder_matrices(untied)}
    dense.load_state_dict(untied | projected, strict=False)
    with torch.no_grad():
        expected, got = dense(input_ids=ids).logits, model(input_ids=ids).logits
    # Inputs are int8 in the packed model and floats here: no more than that separates them.
    assert (got - expected).norm() < 0.02 * expected.norm()


def test_ties_and_other_ratios_keep_as_many_as_said() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.5, 3.0, -4.0, 2.0]])
    assert keep_largest(weight, 4, 2).tolist() == [[1, -1, 0, 0, 0, 3, -4, 0]]
    assert keep_largest(weight, 4, 1).tolist() == [[1, 0, 0, 0, 0, 0, -4, 0]]
    assert keep_largest(weight, 8, 3).tolist() == [[0, 0, 0, 0, 0, 3, -4, 2]]


def test_the_scale_depends_on_the_sign_of_the_extreme_value() -> None:
    weight = torch.tensor([[0.5, -1.0], [1.0, -0.4], [1.0, -1.0], [0.0, 0.0]])
    stored = quantize_to_largest(weight, 4, 1)
    assert stored.scales.tolist() == pytest.approx([1 / 8, 1 / 7, 1 / 7, 1])
    assert stored.weight.tolist() == [[4, -8], [7, -3], [7, -7], [0, 0]]


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_finds_the_best_scale_of_its_grid(bits: int, norm: int) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(8, 64, generator=generator) * 0.02
    stored = quantize_by_search(weight, bits, 4, norm)
    searched = (stored.weight * stored.scales.repeat_interleave(4)[:, None] - weight).view(2, -1)
    simple = (fake_quantized(weight, bits, 8) - weight).view(2, -1)
    errors, first = searched.norm(p=norm, dim=1), simple.norm(p=norm, dim=1)
    assert (errors <= first * (1 + 1e-6)).all()
    # Every scale is the matrix' first one less a whole number of steps.
    largest = weight.abs().max() / (2 ** (bits - 1) - int(weight.abs().max() == weight.max()))
    steps = (largest - stored.scales) / (256 * torch.finfo(torch.float32).eps)
    assert torch.allclose(steps, steps.round(), atol=0.02)
    if bits == 4:
        assert (steps.round() >= 1).any()
    assert not quantize_by_search(torch.zeros(4, 4), bits, 4, norm).weight.any()


@pytest.mark.parametrize("kind", ["NxM_QUANT", "QUANT"])
def test_types_with_a_search_use_it(
    kind: str, untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.json"
    export_nxm(tmp_path / "source", model_config, untied, kind, file, **ALL)
    checkpoint = open_checkpoint(tmp_path / "source", finalise={"nxm": str(file)})
    weight = untied[f"{MODULE}.weight"]
    masked = two_of_four(weight) if kind == "NxM_QUANT" else weight
    stored, expected = checkpoint.linears[MODULE].load(), quantize_by_search(masked, 4, 16, 2)
    assert torch.equal(stored.weight, expected.weight)
    assert torch.equal(stored.scales, expected.scales)
    assert "least error of norm 2" in checkpoint.steps[0]


def test_a_ratio_at_which_the_published_helper_errs_is_reported(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.json"
    export_nxm(tmp_path / "source", model_config, untied, "NxM", file, N=4, M=1)
    checkpoint = open_checkpoint(tmp_path / "source", finalise={"nxm": str(file)})
    assert int((checkpoint.tensors[f"{MODULE}.weight"] != 0).sum()) == 32 * 48 // 4
    assert "the published mask helper keeps other numbers" in checkpoint.steps[1]


def test_a_base_models_names_match_a_task_models_configuration(
    untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.json"
    export_nxm(tmp_path / "task", model_config, untied, "NxM", file, **TWO_OF_FOUR)
    base = {n.removeprefix("bert."): t for n, t in untied.items() if n.startswith("bert.")}
    export_nxm(tmp_path / "base", model_config, base, "NxM", tmp_path / "b.json", **TWO_OF_FOUR)
    tensors = open_checkpoint(tmp_path / "base", finalise={"nxm": str(file)}).tensors
    name = "encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(tensors[name], two_of_four(base[name]))
    tensors = open_checkpoint(tmp_path / "task", finalise={"nxm": tmp_path / "b.json"}).tensors
    assert torch.equal(tensors[f"bert.{name}"], two_of_four(base[name]))


def test_a_configuration_beside_the_weights_is_pointed_at_and_not_guessed(
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    export_nxm(
        tmp_path, model_config, untied, "NxM", tmp_path / "uniform_NxM_bert.json", **TWO_OF_FOUR
    )
    with pytest.raises(CheckpointError, match=r"uniform_NxM_bert\.json .*--finalise nxm=FILE"):
        open_checkpoint(tmp_path)
    checkpoint = open_checkpoint(tmp_path, finalise={"nxm": "none"})
    holds(checkpoint, untied)
    assert "left out" in checkpoint.steps[0]


def entry(kind: str = "NxM_ADMM_STE", **changes: Any) -> dict[str, Any]:
    args = {key: value for key, value in (ALL | changes).items() if value is not None}
    return {MODULE: {"type": kind, "args": args}}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"bert.encoder.layer.7.output.dense": entry()[MODULE]}, "layer.7.*got none"),
        ({"output.dense": entry()[MODULE]}, "output.dense: expected one weight"),
        ({"bert.embeddings.LayerNorm": entry()[MODULE]}, r"expected a float matrix.*\[32\]"),
        (entry("NxM_Lora"), "type 'NxM_Lora': expected one of NxM"),
        (entry(N=5), r"groups of 5 .*got float32 \[32, 48\]"),
        (entry(M=4), "M is 4"),
        (entry(M=None), "M is missing"),
        (entry(precision=2), "precision is 2"),
        (entry(chunk_size=0), "chunk_size is 0"),
        (entry(chunk_size=20), "chunks of 20"),
        (entry("NxM_QUANT", norm=3), "norm is 3"),
        (entry(N="4"), "expected integers"),
        (entry(block=4), "expected integers"),
        ({MODULE: {"type": "NxM"}}, 'expected {"type"'),
        ({MODULE: 3}, 'expected {"type"'),
        ([], "expected a JSON object"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    entries: Any,
    said: str,
    untied: dict[str, Tensor],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(write(untied), finalise={"nxm": str(file)})


def test_a_missing_configuration_is_named(
    untied: dict[str, Tensor], write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"nxm=.*absent\.json.*: no such file"):
        open_checkpoint(write(untied), finalise={"nxm": str(tmp_path / "absent.json")})
