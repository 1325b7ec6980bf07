"""prune() and convert(calibration=...) end to end on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import sparse_runtime as sr
from sparse_runtime import store
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.compress import Pattern, encoder_linears
from sparse_runtime.compress.oneshot import layerwise
from sparse_runtime.compress.oneshot.prune import prune
from sparse_runtime.compress.oneshot.solvers import SolverOptions
from sparse_runtime.spec import ActivationSpec

MakeModel = Callable[[str], nn.Module]

WORDS = [f"word{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % 50] for j in range(3 + i % 9)) for i in range(40)]
QUERY = "bert.encoder.layer.0.attention.self.query"


def save(model: Any, folder: Path, tokenizer: bool = True) -> Path:
    from transformers import BertTokenizer

    model.save_pretrained(folder)
    if tokenizer:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path: Path, make_model: MakeModel) -> Path:
    return save(make_model("bert"), tmp_path / "source")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensors[name] for name in checkpoint.tensors}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs", "alps"])
@pytest.mark.parametrize("to", ["2:4", "block:1x4@0.5"])
def test_floats_have_the_pattern(source: Path, tmp_path: Path, method: Any, to: str) -> None:
    report = prune(source, tmp_path / "out", to=to, method=method, calibration=TEXTS)
    pattern = Pattern.parse(to)
    pruned, before = weights(tmp_path / "out"), weights(source)
    for row in report.layers:
        weight = pruned[f"{row.name}.weight"]
        # An input that is always 0, of a value channel that has lost its weights, keeps none.
        fed = (weight != 0).any(0)
        assert torch.equal(pattern.mask(weight.abs())[:, fed], (weight != 0)[:, fed])
        assert row.sparsity == pytest.approx(0.5, abs=(~fed).float().mean().item() / 2)
    assert len(report.layers) == 12
    kept = [name for name in before if ".layer." not in name]
    assert kept and all(torch.equal(before[name], pruned[name]) for name in kept)
    if method == "magnitude":
        assert report.error == pytest.approx(report.magnitude_error)


def test_second_order_loses_less_than_magnitude(source: Path) -> None:
    reports = {
        method: prune(source, None, to="2:4", values="int4", method=method, calibration=TEXTS)
        for method in ("obs", "alps")
    }
    for report in reports.values():
        assert report.error < 0.9 * report.magnitude_error


@pytest.mark.parametrize(
    ("values", "scales"), [("int8", "row"), ("int4", "row"), ("int4", "chunk:4")]
)
def test_integers_are_packed_as_they_are(
    source: Path, tmp_path: Path, values: str, scales: str
) -> None:
    folder = tmp_path / "out"
    prune(source, folder, to="2:4", values=values, scales=scales, calibration=TEXTS)
    inspected = sr.inspect(folder)
    assert any("stated" in found.layout for found in inspected.recognised)
    sr.convert(folder, tmp_path / "packed")
    packed, stated = store.load(tmp_path / "packed"), open_checkpoint(folder)
    assert packed.linears.keys() == stated.linears.keys()
    for name, linear in packed.linears.items():
        spec = linear.packed.spec
        assert (str(spec.structure), spec.values.dtype, spec.values.scales) == (
            "2:4",
            values,
            scales,
        )
        assert spec.activations == ActivationSpec("dynamic", "uint8")
        assert torch.equal(linear.packed.unpack(), stated.linears[name].load().weight)


def test_convert_solves_as_prune_does(source: Path, tmp_path: Path) -> None:
    prune(source, tmp_path / "pruned", to="2:4", values="int8", calibration=TEXTS)
    sr.convert(tmp_path / "pruned", tmp_path / "two")
    report = sr.convert(source, tmp_path / "one", prune="2:4", calibration=TEXTS)
    one, two = store.load(tmp_path / "one"), store.load(tmp_path / "two")
    for name, linear in two.linears.items():
        assert torch.equal(one.linears[name].packed.unpack(), linear.packed.unpack()), name
        assert linear.bias is not None
        assert torch.equal(one.linears[name].bias, linear.bias), name
    assert report.arguments["prune_method"] == "alps"
    assert report.arguments["calibration"] == len(TEXTS)
    assert all(layer.error > 0.1 for layer in report.layers)
    assert report.zeroed >= 12 * 32 * 16


def test_convert_leaves_floats_floats(source: Path, tmp_path: Path) -> None:
    sr.convert(
        source,
        tmp_path / "packed",
        prune="unstructured@0.5",
        values="fp32",
        calibration=TEXTS,
        prune_method="wanda",
    )
    spec = store.load(tmp_path / "packed").linears[QUERY].packed.spec
    assert (str(spec.structure), spec.values.dtype) == ("unstructured", "fp32")


def test_heads_and_prefixes_travel(tmp_path: Path, make_model: MakeModel) -> None:
    for family in ("roberta", "distilbert"):
        model: Any = make_model(family)
        source = save(model, tmp_path / family)
        prune(source, tmp_path / f"{family}-out", to="2:4", values="int8", calibration=TEXTS)
        sr.convert(source, tmp_path / f"{family}-one", prune="2:4", calibration=TEXTS)
        sr.convert(tmp_path / f"{family}-out", tmp_path / f"{family}-two")
        head = "classifier.out_proj.weight" if family == "roberta" else "classifier.weight"
        for form in ("one", "two"):
            packed = store.load(tmp_path / f"{family}-{form}")
            assert torch.equal(packed.tensors[head], model.state_dict()[head])
            assert all(str(x.packed.spec.structure) == "2:4" for x in packed.linears.values())


def test_a_stopped_run_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"to": "2:4", "values": "int8", "calibration": TEXTS}
    prune(source, tmp_path / "whole", **arguments)
    solve, names = layerwise.solve, []

    def fail_in_the_second_layer(name: str, *rest: Any, **options: Any) -> Any:
        names.append(name)
        if ".layer.1.intermediate" in name:
            raise KeyboardInterrupt
        return solve(name, *rest, **options)

    monkeypatch.setattr(layerwise, "solve", fail_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "parts", state_dir=tmp_path / "state", **arguments)
    assert not (tmp_path / "parts").exists()
    names.clear()
    monkeypatch.setattr(
        layerwise, "solve", lambda name, *r, **o: (names.append(name), solve(name, *r, **o))[1]
    )
    report = prune(source, tmp_path / "parts", state_dir=tmp_path / "state", **arguments)
    restored = prune(source, None, state_dir=tmp_path / "state", **arguments)
    assert restored.tokens == report.tokens > 200 and len(restored.layers) == 12
    assert not any(".layer.0." in name for name in names)
    assert len(report.layers) == 12
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    one, two = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "parts")
    for name, linear in one.linears.items():
        assert torch.equal(linear.load().weight, two.linears[name].load().weight)
    with pytest.raises(ValueError, match=r"differs in method \(held 'alps', asked 'wanda'\)"):
        prune(source, None, state_dir=tmp_path / "state", method="wanda", **arguments)


def test_a_conversion_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"prune": "2:4", "calibration": TEXTS, "state_dir": tmp_path / "state"}
    sr.convert(source, tmp_path / "one", **given)
    with monkeypatch.context() as patch:
        patch.setattr(layerwise, "solve", None)  # every layer is restored
        sr.convert(source, tmp_path / "two", **given)
    one, two = store.load(tmp_path / "one"), store.load(tmp_path / "two")
    for name, linear in one.linears.items():
        assert torch.equal(linear.packed.unpack(), two.linears[name].packed.unpack())
    with pytest.raises(ValueError, match=r"differs in method \(held 'alps', asked 'wanda'\)"):
        sr.convert(source, tmp_path / "three", **given, prune_method="wanda")
    with pytest.raises(ValueError, match=r"state_dir .*state \(--state\): keeps layers"):
        sr.convert(source, tmp_path / "three", state_dir=tmp_path / "state")
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    "tensor", ["embeddings.word_embeddings.weight", "attention.output.LayerNorm", "query.bias"]
)
def test_the_state_of_another_model_is_refused(
    source: Path, tmp_path: Path, make_model: MakeModel, tensor: str
) -> None:
    # Linear weights are the same: what lies between them is not.
    arguments: dict[str, Any] = {"to": "2:4", "method": "wanda", "calibration": TEXTS}
    prune(source, None, state_dir=tmp_path / "state", **arguments)
    model = make_model("bert")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if tensor in name).add_(0.5)
    other = save(model, tmp_path / "other")
    with pytest.raises(ValueError, match="holds another run, which differs in weights; give"):
        prune(other, None, state_dir=tmp_path / "state", **arguments)


def test_only_some_layers(source: Path, tmp_path: Path) -> None:
    report = prune(source, tmp_path / "out", to="2:4", include="intermediate", calibration=TEXTS)
    names = [f"bert.encoder.layer.{index}.intermediate.dense" for index in (0, 1)]
    assert [row.name for row in report.layers] == names
    before, after = weights(source), weights(tmp_path / "out")
    assert torch.equal(before[f"{QUERY}.weight"], after[f"{QUERY}.weight"])


def test_only_what_is_to_follow_changes_the_bias(source: Path, tmp_path: Path) -> None:
    before, changed = weights(source)[f"{QUERY}.bias"], {}
    for follows in (True, False):
        options, out = SolverOptions(correct_bias=follows), tmp_path / str(follows)
        prune(source, out, to="1:16", calibration=TEXTS, options=options)
        changed[follows] = not torch.equal(weights(out)[f"{QUERY}.bias"], before)
    assert changed == {True: True, False: False}


def test_report_is_shown_and_recorded(source: Path, tmp_path: Path) -> None:
    report = prune(source, tmp_path / "out", to="2:4", values="int8", calibration=TEXTS)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["sparsity"] >= 0.5 and data["texts"] == 40 and data["tokens"] > 200
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["one_shot"]["to"] == "2:4" and record["source"] == "source"
    assert str(tmp_path) not in json.dumps(record)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "by magnitude" in console.export_text()


def test_a_model_in_memory_is_changed_in_place(source: Path, make_model: MakeModel) -> None:
    from transformers import AutoTokenizer

    model = make_model("bert")
    with pytest.raises(ValueError, match="needs its tokenizer"):
        prune(model, None, to="2:4", calibration=TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(source)
    prune(model, None, to="2:4", calibration=TEXTS, tokenizer=tokenizer)
    for linear in encoder_linears(model).values():
        assert torch.count_nonzero(linear.weight) * 2 == linear.weight.numel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to do; give to"),
        ({"to": "2:4", "values": "bf16"}, "expected 'int8' or 'int4', or none"),
        ({"to": "dense"}, "nothing to prune"),
        ({"to": "2:4", "method": "best"}, "method 'best': expected one of 'magnitude', 'wanda'"),
        ({"to": "block:1x4@0.5", "method": "exact_obs"}, "query: method 'exact_obs': removes"),
        ({"to": "2:4", "calibration": []}, "expected a list of at least one text"),
        ({"to": "2:4", "exclude": "layer"}, "no linear layer is left"),
        ({"to": "2:4", "include": "("}, r"include '\(' \(--include\): expected a regular"),
        ({"to": "2:4", "exclude": "*a"}, r"exclude '\*a' \(--exclude\): expected a regular"),
        ({"to": "2:4", "ranges": "mse"}, r"ranges 'mse' \(--ranges\): expected layers with int"),
    ],
)
def test_arguments_that_are_refused(source: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(source, None, **{"calibration": TEXTS, **arguments})


def test_options_that_are_refused() -> None:
    with pytest.raises(ValueError, match="damping 0: expected a share above 0"):
        SolverOptions(damping=0)
    with pytest.raises(ValueError, match="step 0: expected at least one column"):
        SolverOptions(step=0)


def test_sources_that_are_refused(tmp_path: Path, make_model: MakeModel, source: Path) -> None:
    bare = save(make_model("bert"), tmp_path / "bare", tokenizer=False)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        prune(bare, None, to="2:4", calibration=TEXTS)
    prune(source, tmp_path / "quantized", values="int8", calibration=TEXTS)
    with pytest.raises(CheckpointError, match="integers already"):
        prune(tmp_path / "quantized", None, to="2:4", calibration=TEXTS)
    with pytest.raises(FileExistsError, match="an empty directory, got one with files; choose"):
        prune(source, tmp_path / "quantized", to="2:4", calibration=TEXTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune_method": "obs"}, "prune_method 'obs': needs texts"),
        ({"calibration": TEXTS, "values": "fp32"}, "calibration: nothing to solve"),
        ({"calibration": TEXTS, "prune": "2:4", "prune_method": "best"}, "prune_method 'best'"),
    ],
)
def test_convert_refuses(
    source: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sr.convert(source, tmp_path / "packed", **arguments)
    assert not (tmp_path / "packed").exists()
