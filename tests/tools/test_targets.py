"""Latency, size and FLOP targets end to end on a small model; plans; the command's options."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

import sparse_runtime as sr
from sparse_runtime.cli.commands.prune_search import read_formats, read_shape
from sparse_runtime.compress.oneshot import plans
from sparse_runtime.compress.oneshot.allocation import Target
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.plans import SearchPlan
from sparse_runtime.compress.oneshot.prune import prune
from sparse_runtime.compress.oneshot.sensitivity import units_of
from sparse_runtime.compress.targets import encoder_linears
from sparse_runtime.encoders import SparseModel
from sparse_runtime.ops.native import unavailable
from sparse_runtime.tools.layer_latency import Shape, _by_unit, latency_costs, pack_model
from sparse_runtime.tools.targets import prune_to_target

WORDS = ("the", "cat", "sat", "on", "a", "mat", "saw", "one", "dog", "run", "home", "past", "two")
TEXTS = [" ".join(WORDS[i : i + 3 + i % 5]) for i in range(12)] * 2
DENSE, HALF = LayerFormat.parse("dense int8"), LayerFormat.parse("2:4 int8")
needs_extension = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    made = BertModel(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.15)
    return made


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    vocabulary = tmp_path / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
    vocabulary.write_text("\n".join(words))
    return BertTokenizer(str(vocabulary))


@needs_extension
def test_costs_cover_every_unit_and_the_rest(model: nn.Module) -> None:
    units = units_of(model, fused=True)
    costs = latency_costs(model, units, [HALF], DENSE, Shape(2, 8), rounds=2)
    assert costs.units.keys() == units.keys()
    assert all(row.keys() == {HALF, DENSE} for row in costs.units.values())
    assert all(seconds > 0 for row in costs.units.values() for seconds in row.values())
    assert costs.fixed > 0
    with pytest.raises(ValueError, match="fused=True"):
        latency_costs(model, units_of(model), [HALF], DENSE, Shape(2, 8), rounds=1)


@needs_extension
def test_attention_counts_with_its_inputs_whether_it_is_a_stage_or_not() -> None:
    # 12 heads of 32 in one panel of tokens: where the backend has heads as tasks, here it does.
    config = BertConfig(
        vocab_size=24, hidden_size=384, num_hidden_layers=2, num_attention_heads=12,
        intermediate_size=384,
    )  # fmt: skip
    wide = BertModel(config).eval()
    units = units_of(wide, fused=True)
    costs = latency_costs(wide, units, [HALF], DENSE, Shape(1, 16), rounds=2)
    assert costs.units.keys() == units.keys()
    first = "a.query + a.key"
    apart = [("embed", 9.0), (first, 1.0), ("attention", 2.0), ("attention (quantize)", 4.0)]
    joined = [("embed", 9.0), (f"{first} + attention", 3.0), ("attention (quantize)", 4.0)]
    other = [("b (quantize)", 0.5), ("b", 0.25), ("to rows", 8.0)]
    for stages in (apart, joined):
        assert _by_unit(stages + other, {first: [], "b": []}) == {first: 7.0, "b": 0.75}
    assert _by_unit(apart + other, {"b": []}) == {"b": 0.75}


def test_packing_in_memory_needs_every_layer(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="expected one for every layer"):
        pack_model(model, {next(iter(encoder_linears(model))): DENSE})


@needs_extension
def test_a_packed_mixture_computes_what_its_weights_say(model: nn.Module) -> None:
    formats = {n: HALF if i % 2 else DENSE for i, n in enumerate(encoder_linears(model))}
    packed = pack_model(model, formats)
    dense = copy.deepcopy(model)
    for name, linear in encoder_linears(dense).items():
        linear.weight.data = packed.linears[name].packed.dequantize()
    ids = torch.randint(5, 20, (2, 7))
    with torch.no_grad():
        expected = dense(ids)[0]
    found = SparseModel.from_packed(packed, backend="cpu")(ids)[0]
    assert float((found - expected).norm() / expected.norm()) < 0.03  # inputs in 8 bits


@needs_extension
def test_a_latency_target_reports_what_was_measured(
    model: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    report = prune_to_target(
        model,
        tmp_path / "out",
        target="latency=1.5x",
        formats=["dense int8", "2:4 int8"],
        calibration=TEXTS,
        tokenizer=tokenizer,
        shape=Shape(1, 8),
        rounds=3,
        progress=False,
    )
    assert report.allocation.cost <= report.allocation.budget
    assert report.measured is not None and report.measured > 0
    assert report.to_dict()["target"]["kind"] == "latency"
    # With room for it, nothing is pruned.
    assert set(report.allocation.formats.values()) == {DENSE}


@pytest.mark.parametrize("target", ["size=0.7x", "flops=0.75x"])
def test_a_mixture_is_written_and_packed_as_it_is(
    model: nn.Module, tokenizer: Any, tmp_path: Path, target: str
) -> None:
    report = prune_to_target(
        model,
        tmp_path / "out",
        target=target,
        calibration=TEXTS,
        tokenizer=tokenizer,
        progress=False,
    )
    chosen = report.allocation.by_layer()
    assert report.measured is None and len(set(chosen.values())) > 1
    converted = sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed").packed
    assert {layer.name for layer in converted.layers} == chosen.keys()
    for name, choice in chosen.items():
        assert packed.linears[name].packed.spec.values.dtype == choice.values.dtype
        weight = model.get_parameter(f"{name}.weight")
        assert torch.equal(packed.linears[name].packed.dequantize(), weight.detach())
        if choice.pattern is not None:
            groups = (weight != 0).view(weight.shape[0], -1, 4).sum(-1)
            assert int(groups.max()) <= 2


def test_a_plan_reorders_before_layers_are_solved(model: nn.Module, tokenizer: Any) -> None:
    plan = SearchPlan(reorder=True, progress=False)
    report = prune(
        model, None, to="2:4", calibration=TEXTS, tokenizer=tokenizer, plan=plan, progress=False
    )
    assert len(plan.kept) == 4 and any(kept.after > kept.before for kept in plan.kept)
    assert all(layer.sparsity == pytest.approx(0.5) for layer in report.layers)
    assert report.arguments["plan"]["permute"] is True


def test_units_go_without_any_other_format(
    model: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    plan = sr.compress.SearchPlan(keep_flops=0.6, progress=False)
    assert isinstance(plan, SearchPlan)
    report = prune(
        model, tmp_path / "out", calibration=TEXTS, tokenizer=tokenizer, plan=plan, progress=False
    )
    assert plan.removed is not None and plan.removed.flops <= 0.6
    assert report.layers == []
    report.__rich__()  # no layer was solved, and there is nothing to divide by
    converted = sr.convert(tmp_path / "out", tmp_path / "packed", values="fp32", progress=False)
    assert converted.cropped


@needs_extension
@pytest.mark.parametrize("ranges", ["min-max", "percentile", "mse"])
def test_static_inputs_are_stated_and_run(
    model: nn.Module, tokenizer: Any, tmp_path: Path, ranges: Any
) -> None:
    prune(
        model,
        tmp_path / "out",
        values="int8",
        calibration=TEXTS,
        tokenizer=tokenizer,
        ranges=ranges,
        plan=SearchPlan(smooth=True, progress=False),
        progress=False,
    )
    sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed")
    specs = {linear.packed.spec.activations for linear in packed.packed.linears.values()}
    assert all(spec is not None and spec.scheme == "static" for spec in specs)
    batch = tokenizer(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch)[0][batch["attention_mask"].bool()]
    found = packed(**batch)[0][batch["attention_mask"].bool()]
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_ranges_exclude_other_ways(model: nn.Module, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        prune(
            model,
            None,
            values="int8",
            calibration=TEXTS,
            tokenizer=tokenizer,
            ranges="mse",
            activations="symmetric",
        )
    with pytest.raises(ValueError, match="ranges 'max'"):
        prune(
            model,
            None,
            values="int8",
            calibration=TEXTS,
            tokenizer=tokenizer,
            ranges="max",  # type: ignore[arg-type]
        )


def test_plans_that_contradict_are_refused(model: nn.Module, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="leave keep_flops"):
        SearchPlan(keep_flops=0.5, reorder=True)
    with pytest.raises(ValueError, match="none"):
        SearchPlan(reorder=True)(model, [], {"a": LayerFormat.parse("dense int8").wanted})
    with pytest.raises(ValueError, match=r"--formats"):
        prune_to_target(
            model, None, target="size=0.5x", calibration=TEXTS, tokenizer=tokenizer, to="2:4"
        )


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        ({"target": "size=0.7x"}, {"include": "query"}, r"include.*--target"),
        ({"target": "size=0.7x"}, {"exclude": "query", "ranges": "mse"}, r"exclude.*--target"),
        ({"target": "size=0.7x"}, {"scales": "tensor"}, r"scales 'tensor'.*a scale a row"),
        ({"keep_flops": 0.6}, {"include": "query"}, r"include.*--keep-flops"),
        ({"smooth": True}, {"values": "int8", "exclude": "query"}, r"exclude.*--smooth"),
    ],
)
def test_what_a_plan_would_not_heed_is_refused(
    model: nn.Module,
    tokenizer: Any,
    plan: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    if "target" in plan:
        plan = {**plan, "target": Target.parse(plan["target"])}
    made = SearchPlan(progress=False, **plan)
    with pytest.raises(ValueError, match=message):
        prune(model, None, calibration=TEXTS, tokenizer=tokenizer, plan=made, **options)


@pytest.mark.parametrize("target", ["size=0.1x", "flops=0.1x"])
def test_a_target_that_nothing_meets_is_refused_before_anything_is_solved(
    model: nn.Module, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(plans, "sensitivity", None)
    with pytest.raises(ValueError, match="cheapest formats"):
        prune_to_target(model, None, target=target, calibration=TEXTS, tokenizer=tokenizer)


@pytest.mark.parametrize("formats", [["dense int4"], ["dense int8", "dense int4", "2:4 int4"]])
def test_what_is_packed_stays_within_a_size_target(
    model: nn.Module, tokenizer: Any, tmp_path: Path, formats: list[str]
) -> None:
    report = prune_to_target(
        model,
        tmp_path / "out",
        target="size=0.65x",
        formats=formats,
        calibration=TEXTS,
        tokenizer=tokenizer,
        progress=False,
    )
    converted = sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = sum(layer.bytes for layer in converted.layers)
    assert packed <= report.allocation.cost <= report.allocation.budget


def test_layers_that_stay_dense_floats_are_not_touched(model: nn.Module, tokenizer: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    report = prune_to_target(
        model,
        None,
        target="size=2.5x",
        formats=["dense fp32", "2:4 int8"],
        calibration=TEXTS,
        tokenizer=tokenizer,
        progress=False,
    )
    chosen = report.allocation.by_layer()
    dense = {name for name, choice in chosen.items() if str(choice) == "dense fp32"}
    assert dense and dense != set(chosen)
    for name, linear in encoder_linears(model).items():
        same = torch.equal(linear.weight, before[f"{name}.weight"])
        assert same == (name in dense), name
        assert name not in dense or torch.equal(linear.bias, before[f"{name}.bias"])


def test_ranges_of_floats_are_refused_before_anything_is_solved(
    model: nn.Module, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "sensitivity", None)
    for made in (
        SearchPlan(target=Target.parse("size=2x"), candidates=(LayerFormat.parse("2:4 fp32"),)),
        SearchPlan(keep_flops=0.6),
    ):
        with pytest.raises(ValueError, match=r"ranges 'mse' \(--ranges\): expected layers with"):
            prune(
                model,
                tmp_path / "out",
                calibration=TEXTS,
                tokenizer=tokenizer,
                ranges="mse",
                plan=made,
            )
    assert not (tmp_path / "out").exists()


def test_ranges_that_a_target_has_no_use_for_are_said(
    model: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"calibration": TEXTS, "tokenizer": tokenizer, "progress": False}
    formats = ["dense int8", "2:4 fp32"]
    report = prune_to_target(
        model, None, target="flops=0.5x", formats=formats, ranges="mse", **arguments
    )
    assert {str(choice) for choice in report.allocation.formats.values()} == {"2:4 fp32"}
    (note,) = report.to_dict()["notes"]
    assert note.startswith("ranges 'mse' (--ranges): not used, for every layer")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    assert "(--ranges): not used" in console.export_text()
    used = prune_to_target(model, None, target="flops=1x", ranges="mse", **arguments)
    assert used.prune.notes == ()


@pytest.mark.parametrize("text", ["8", "0x8", "8x", "8x8x8"])
def test_shapes_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="--shape"):
        read_shape(text)


def test_options_are_read() -> None:
    assert read_shape("8x128") == read_shape(None) == Shape(8, 128)
    assert read_formats("dense int8, 2:4 int4") == ["dense int8", "2:4 int4"]
    assert read_formats(None) == []
