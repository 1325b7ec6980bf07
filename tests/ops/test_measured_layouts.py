"""The time of a layer's layout, measured: what was predicted, counted alike and shown beside it."""

from __future__ import annotations

import re

import pytest
import torch

from sparse_runtime.ops import LinearWeight, choose, cpu_panels
from sparse_runtime.ops.calibration import (
    FEW,
    FLOAT_LAYOUTS,
    INT8_LAYOUTS,
    MANY,
    machine_costs,
    panel_seconds,
)
from sparse_runtime.ops.layouts import ANY_TOKENS, FEW_TOKENS, LayoutChoice
from sparse_runtime.ops.native import address, extension
from sparse_runtime.testing import make_packed

# Long enough to time, and with whole tiles, bands and blocks of every layout.
SHAPE = (256, 768)
RUNNING = [name for name in INT8_LAYOUTS if extension().int8_panels_runs(name)]
BF16_LAYOUTS = [name for name in ("dense16", "tiles16") if extension().float_panels_runs(name)]
LOOSE = 20
"""A busy machine; what is held is that both count the same work in the same unit."""

TIMES = re.compile(r"predicted ([\d.]+) us, measured ([\d.]+) us")


def sparse_weight(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(SHAPE, generator=generator) < 0.1
    return (kept * torch.randint(1, 128, SHAPE, generator=generator)).to(dtype)


@pytest.mark.parametrize("regime", [FEW, MANY])
@pytest.mark.parametrize("layout", [*RUNNING, *FLOAT_LAYOUTS])
def test_every_layout_takes_about_as_long_as_predicted(layout: str, regime: str) -> None:
    is_integer = layout in INT8_LAYOUTS
    weight = sparse_weight(torch.int8)
    units = extension().int8_panels_count(address(weight), *SHAPE)
    if not is_integer:
        weight = weight.float()
        units = extension().float_panels_count(address(weight), *SHAPE)
    pack = extension().int8_panels_pack if is_integer else extension().float_panels_pack
    measured = panel_seconds(pack(address(weight), *SHAPE, layout), layout, regime)
    predicted = machine_costs()[layout][regime].seconds(units[layout], SHAPE[0])
    assert predicted / LOOSE < measured < predicted * LOOSE


@pytest.mark.parametrize("layout", BF16_LAYOUTS)
def test_layouts_without_a_prediction_are_measured_too(layout: str) -> None:
    weight = sparse_weight(torch.float32)
    packed = extension().float_panels_pack(address(weight), *SHAPE, layout)
    few, many = (panel_seconds(packed, layout, regime) for regime in (FEW, MANY))
    # A quarter of the tokens.
    assert 0 < few < many * LOOSE < 1


@pytest.mark.parametrize("values", ["int8", "int4", "fp32", "bf16"])
@pytest.mark.parametrize("structure", ["dense", "2:4", "block:4x1", "unstructured"])
def test_explain_shows_the_measured_time_when_asked(structure: str, values: str) -> None:
    sparsity = 0.9 if structure in ("block:4x1", "unstructured") else None
    packed = make_packed(SHAPE, structure, sparsity, values=values)
    dtype = torch.bfloat16 if values == "bf16" else torch.float32
    decision = choose([LinearWeight("layer", packed)], backend="cpu", dtype=dtype)
    plain, measured = decision.explain(), decision.explain(measure=True)
    assert "measured" not in plain
    (taken,) = (line for line in measured.splitlines() if "->" in line)
    # One time for each layout: another for few tokens has its own.
    assert taken.count("measured") == plain.count(" bytes")
    assert re.sub(r", measured [\d.]+ us", "", measured) == plain
    pairs = TIMES.findall(taken)
    if values == "bf16":  # one layout, so nothing was predicted
        assert not pairs and "predicted" not in taken
        pairs = [(time, time) for time in re.findall(r"measured ([\d.]+) us", taken)]
    assert len(pairs) == taken.count("measured")
    for predicted, time in pairs:
        assert float(time) > 0
        assert float(predicted) / LOOSE < float(time) < float(predicted) * LOOSE


def test_layers_run_as_one_are_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # 16, 24 and 8 rows below each other.
    seen: list[tuple[int, int]] = []

    def seconds(packed: object, layout: str, regime: str) -> float:
        seen.append((packed.n, packed.k))  # type: ignore[attr-defined]
        return 12.3e-6

    monkeypatch.setattr(cpu_panels, "panel_seconds", seconds)
    weights = [LinearWeight(f"l{n}", make_packed((n, 64), values="int8")) for n in (16, 24, 8)]
    text = choose(weights, backend="cpu").explain(measure=True)
    assert set(seen) == {(48, 64)}
    assert text.count("measured 12 us") == len(seen)


def test_each_layout_is_measured_with_the_tokens_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = (
        LayoutChoice("band1_grouped", FEW_TOKENS, 1, 2e-6, {"dense": 3e-6}),
        LayoutChoice("dense", ANY_TOKENS, 2, 40e-6, {}),
    )
    times = {("band1_grouped", FEW): 2.54e-6, ("dense", MANY): 41e-6}
    monkeypatch.setattr(cpu_panels, "choose_layouts", lambda request, weight: choices)
    monkeypatch.setattr(
        cpu_panels, "panel_seconds", lambda packed, layout, regime: times[layout, regime]
    )
    weight = LinearWeight("layer", make_packed((32, 64), values="int8"))
    text = choose([weight], backend="cpu").explain(measure=True)
    assert (
        "band1_grouped up to 16 tokens: 1 bytes, predicted 2.0 us, measured 2.5 us "
        "(predicted: dense 3.0); dense: 2 bytes, predicted 40 us, measured 41 us\n"
    ) in text


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float32), pytest.param("cpu", torch.float64, id="cpu.float")],
)
def test_other_kernels_have_no_times(backend: str, dtype: torch.dtype) -> None:
    weight = LinearWeight("layer", make_packed((16, 24), values="fp32"))
    decision = choose([weight], backend=backend, dtype=dtype)
    assert decision.candidate.name == {"cpu": "cpu.float"}.get(backend, backend)
    assert decision.explain(measure=True) == decision.explain()
