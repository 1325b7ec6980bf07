"""The choice among candidates: complete, explained, loud."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.ops import CANDIDATES, LinearWeight, choose, get_backend, native
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_packed

SHAPE = (16, 24)


def weight(name: str = "layer", **arguments: object) -> LinearWeight:
    return LinearWeight(name, make_packed(SHAPE, **arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"values": "int8"}, "cpu.panels"),
        ({"values": "int4", "structure": "2:4"}, "cpu.panels"),
        ({"values": "int8", "activations": "none"}, "cpu.panels"),
        ({"values": "bf16"}, "cpu.panels"),
    ],
)
def test_auto_takes_the_fastest_that_fits_and_explains_the_rest(
    arguments: dict[str, str], expected: str
) -> None:
    decision = choose([weight(**arguments)])
    assert decision.candidate.name == expected
    assert [item.candidate for item in decision.considered] == list(CANDIDATES)
    assert [item.candidate.name for item in decision.considered if item.reason is None] == [
        expected
    ]
    lines = decision.explain().splitlines()
    assert lines[0].startswith("layer: [16, 24] ")
    assert len(lines) == 1 + len(CANDIDATES)
    for line, item in zip(lines[1:], decision.considered, strict=True):
        marker, _, text = line.strip().removeprefix("-> ").partition(":")
        assert marker == item.candidate.name
        assert text.strip()
        assert line.startswith("  -> ") == (item.reason is None)


def test_the_reason_against_a_slower_candidate_names_the_one_that_came_first() -> None:
    decision = choose([weight(values="int8")])
    reasons = {item.candidate.name: item.reason for item in decision.considered}
    assert reasons["reference"] == "cpu.panels comes first"


def test_the_device_layout_is_explained_with_what_it_was_chosen_over() -> None:
    text = choose([weight(values="int8", structure="2:4")]).explain()
    for layout in ("dense", "band4_grouped", "band4_gathered", "band1_grouped", "band1_gathered"):
        assert layout in text
    assert " bytes, " in text
    assert " us (" in text


def test_an_explicit_backend_takes_only_its_own_candidates() -> None:
    decision = choose([weight(values="int8")], backend="reference")
    assert decision.candidate.name == "reference"
    reasons = {item.candidate.name: item.reason for item in decision.considered}
    assert reasons["cpu.panels"] == "backend 'reference' was requested"
    assert reasons["cpu.float"] == "backend 'reference' was requested"


def test_an_explicit_backend_that_cannot_run_a_layer_fails_with_every_reason() -> None:
    # A device that no CPU candidate serves.
    with pytest.raises(RuntimeError) as caught:
        choose([weight(values="int8")], backend="cpu", device="cuda")
    text = str(caught.value)
    assert "layer: backend 'cpu' cannot run this layer" in text
    assert "cpu.panels: runs on cpu, the layer is on cuda" in text
    assert "cpu.float: runs on cpu, the layer is on cuda" in text
    assert "reference: backend 'cpu' was requested" in text


@pytest.mark.parametrize("call", [choose, None])
def test_an_unknown_backend_is_refused_with_the_known_ones(call: object) -> None:
    with pytest.raises(ValueError, match=r"backend 'gpu': expected 'auto' or one of cpu, cuda, r"):
        if call is None:
            get_backend("gpu", "cpu", torch.float32)
        else:
            choose([weight()], backend="gpu")


def test_layers_that_cannot_be_one_are_refused() -> None:
    # Another in_features; another input quantization; none at all.
    wide = LinearWeight("wide", make_packed((16, 32), values="int8"))
    static = weight("static", values="int8", activations=ActivationSpec("static", "int8", 0.1))
    for layers in ([weight(values="int8"), wide], [weight(values="int8"), static], []):
        with pytest.raises(ValueError, match="same in_features and the same input quantization"):
            choose(layers)


def test_get_backend_goes_by_device_and_name() -> None:
    assert get_backend("auto", "cpu", torch.float32).name == "cpu"
    assert get_backend("reference", "cpu", torch.float32).name == "reference"
    assert get_backend("auto", "meta", torch.float32).name == "reference"
    with pytest.raises(RuntimeError, match="backend 'cpu' runs on cpu, got device meta"):
        get_backend("cpu", "meta", torch.float32)


def test_without_the_extension_auto_falls_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_C", None)
    monkeypatch.setattr(native, "_IMPORT_ERROR", "no such file")
    decision = choose([weight(values="int8")])
    assert decision.candidate.name == "reference"
    assert "cpu.panels: sparse_runtime._C is not built (no such file)" in decision.explain()
    assert decision.prepare()(torch.ones(2, SHAPE[1])).shape == (2, SHAPE[0])
    # Floats need no extension.
    assert choose([weight(values="fp32")]).candidate.name == "cpu.float"


def test_without_the_extension_an_explicit_cpu_backend_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_C", None)
    with pytest.raises(RuntimeError, match=r"sparse_runtime\._C is not built"):
        choose([weight(values="int8")], backend="cpu")


def test_a_bias_of_another_length_is_refused_before_it_is_stacked() -> None:
    layers = [weight("query"), LinearWeight("key", weight().packed, torch.zeros(SHAPE[0] - 1))]
    with pytest.raises(ValueError, match=r"key: expected a bias of \[16\], got \[15\]"):
        choose(layers).prepare()
