"""The device layout of a layer: never slower than dense, fitting its zeros, with its true bytes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sparse_runtime.ops import LinearRequest, LinearWeight, choose, layouts
from sparse_runtime.ops.calibration import (
    FEW,
    FLOAT_LAYOUTS,
    INT8_LAYOUTS,
    MANY,
    Cost,
    Costs,
    machine_costs,
)
from sparse_runtime.ops.cpu_panels import PanelLinear, stacked_weight
from sparse_runtime.ops.layouts import (
    ANY_TOKENS,
    FEW_TOKENS,
    TIE,
    WORTH_A_SECOND,
    LayoutChoice,
    choose_layouts,
)
from sparse_runtime.ops.native import address, extension
from sparse_runtime.testing import make_activations, make_packed

STRUCTURES: dict[str, tuple[str, float | None]] = {
    "dense": ("dense", None),
    "block 4x1": ("block:4x1", 0.9),
    "block 1x4": ("block:1x4", 0.9),
    "block 4x4": ("block:4x4", 0.9),
    "unstructured 50 %": ("unstructured", 0.5),
    "unstructured 95 %": ("unstructured", 0.95),
    "2:4": ("2:4", None),
}
# A whole number of row blocks, tiles and groups; and one that pads every one of them.
SHAPES = {"whole": (96, 256), "ragged": (36, 100)}
# Nanoseconds a unit, roughly a machine with VNNI: what fits which zeros follows from it.
TYPICAL = {
    "dense": 2.4,
    "band4_grouped": 2.6,
    "band4_gathered": 3.3,
    "band1_grouped": 0.9,
    "band1_gathered": 2.0,
    "dense32": 0.6,
    "sparse32": 1.0,
}


def costs_of(many: dict[str, float], few: dict[str, float] | None = None) -> Costs:
    """Costs from nanoseconds a unit."""
    few = many if few is None else few
    return {
        name: {FEW: Cost(1e-9 * few[name], 0.0), MANY: Cost(1e-9 * many[name], 0.0)}
        for name in many
    }


def request_for(
    structure: str, values: str = "int8", shape: tuple[int, int] = SHAPES["whole"], layers: int = 1
) -> LinearRequest:
    name, sparsity = STRUCTURES[structure]
    weights = [
        LinearWeight(f"layer{i}", make_packed(shape, name, sparsity, values=values, seed=i))
        for i in range(layers)
    ]
    dtype = torch.bfloat16 if values == "bf16" else torch.float32
    return LinearRequest(tuple(weights), torch.device("cpu"), dtype)


def choices_for(request: LinearRequest, costs: Costs | None = None) -> tuple[LayoutChoice, ...]:
    return choose_layouts(request, stacked_weight(request), costs)


def packed_bytes(weight: Tensor, layout: str) -> int:
    """Of values and indices really packed: all but what every layout keeps once a row."""
    rows, columns = weight.shape
    padded = -(-rows // 32) * 32
    if weight.dtype != torch.int8:
        packed = extension().float_panels_pack(address(weight), rows, columns, layout)
        blocks, groups = -(-columns // 128), -(-padded // 64)
        starts = {"sparse32": blocks * groups + 1, "tiles16": padded // 16 + 1}
        order = 2 * blocks * padded if layout == "sparse32" else 0
        return int(packed.bytes) - 4 * starts.get(layout, 0) - order
    packed = extension().int8_panels_pack(address(weight), rows, columns, layout)
    own_rows = layout.startswith("band1")
    band = 64 if own_rows else 16 if layout.startswith("tile") else 4
    starts_of_bands = 4 * (-(-padded // band) + 1)
    order = 2 * padded if own_rows else 0
    # Sums of rows are kept as floats too where those are exact.
    sums = 4 * padded * (2 if 255 * int(weight.int().abs().sum(1).max()) < 2**24 else 1)
    read_ahead = 64 if layout == "tile_bits" else 0
    return int(packed.bytes) - starts_of_bands - sums - order - read_ahead


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_layer_is_predicted_slower_than_dense_int8_here(structure: str, shape: str) -> None:
    request = request_for(structure, shape=SHAPES[shape])
    choices = choices_for(request)
    weight = stacked_weight(request)
    units = extension().int8_panels_count(address(weight), *weight.shape)
    for regime, choice in ((FEW, choices[0]), (MANY, choices[-1])):
        seconds = {
            name: machine_costs()[name][regime].seconds(units[name], weight.shape[0])
            for name in ("dense", choice.layout)
        }
        assert seconds[choice.layout] <= seconds["dense"]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_every_structure_gets_a_layout_that_fits_and_runs(structure: str, values: str) -> None:
    # The machine's own costs: whatever is chosen holds the weight and multiplies right.
    request = request_for(structure, values, SHAPES["ragged"])
    decision = choose(request.weights, backend="cpu")
    layer = PanelLinear(request)
    assert decision.candidate.name == "cpu.panels"
    assert layer.choices[-1].most_tokens == ANY_TOKENS
    for choice in layer.choices:
        assert choice.layout in (INT8_LAYOUTS if values == "int8" else FLOAT_LAYOUTS)
    # One call by the layout for few tokens, one by the layout for any.
    reference = choose(request.weights, backend="reference").prepare()
    for tokens in (3, FEW_TOKENS + 1):
        x = make_activations(tokens, request.in_features)
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("structure", "values", "expected"),
    [
        ("dense", "int8", "dense"),
        ("block 4x1", "int8", "band4_gathered"),
        ("block 1x4", "int8", "band1_grouped"),
        ("block 4x4", "int8", "band4_grouped"),
        ("unstructured 50 %", "int8", "band1_gathered"),
        ("unstructured 95 %", "int8", "band1_gathered"),
        ("2:4", "int8", "band1_gathered"),
        ("dense", "fp32", "dense32"),
        ("unstructured 95 %", "fp32", "sparse32"),
    ],
)
def test_zeros_decide_the_layout(structure: str, values: str, expected: str) -> None:
    # Of 16 weights, dense is one unit and gathering 4 * (part left), here 1 ns each: 2.4 against 2
    # where half is left.
    costs = costs_of({**TYPICAL, "band1_gathered": 1.0})
    (choice,) = choices_for(request_for(structure, values), costs)
    assert choice.layout == expected
    known = FLOAT_LAYOUTS if values == "fp32" else INT8_LAYOUTS
    assert set(choice.others) == {name for name in TYPICAL if name in known} - {expected}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("layout", INT8_LAYOUTS)
def test_predicted_bytes_of_int8_layouts_are_those_packed(
    layout: str, structure: str, shape: str
) -> None:
    # Costs under which nothing else is as fast; dense, which bounds them all, is slow.
    request = request_for(structure, shape=SHAPES[shape], layers=2)
    prices = dict.fromkeys(INT8_LAYOUTS, 1e6) | {layout: 1e-3}
    (choice,) = choices_for(request, costs_of(prices))
    assert choice.layout == layout
    assert choice.nbytes == packed_bytes(stacked_weight(request), layout)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (21, 43)])
@pytest.mark.parametrize("layout", FLOAT_LAYOUTS)
def test_predicted_bytes_of_float32_layouts_are_those_packed(
    layout: str, shape: tuple[int, int]
) -> None:
    request = request_for("unstructured 50 %", "fp32", shape)
    prices = dict.fromkeys(FLOAT_LAYOUTS, 1e6) | {layout: 1e-3}
    (choice,) = choices_for(request, costs_of(prices))
    assert choice.layout == layout
    assert choice.nbytes == packed_bytes(stacked_weight(request), layout)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (21, 43)])
@pytest.mark.parametrize("structure", ["dense", "unstructured 95 %"])
@pytest.mark.parametrize("tiled", [True, False])
def test_predicted_bytes_of_bf16_layouts_are_those_packed(
    tiled: bool, structure: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packing needs no instruction set, so both layouts are checked on every machine.
    request = request_for(structure, "bf16", shape)
    weight = stacked_weight(request)
    weight[:16, :64] = 0  # tiles that are left out
    machine = SimpleNamespace(float_panels_runs=lambda layout: tiled)
    monkeypatch.setattr(layouts, "extension", lambda: machine)
    (choice,) = choose_layouts(request, weight)
    assert choice.layout == ("tiles16" if tiled else "dense16")
    assert choice.nbytes == packed_bytes(weight, choice.layout)


def test_a_prepared_layer_holds_what_was_predicted_and_what_a_row_needs() -> None:
    request = request_for("block 4x1", shape=(96, 256))
    layer = PanelLinear(request)
    predicted = sum(choice.nbytes for choice in layer.choices)
    # Starts of bands, sums of rows, scales: a few words a row, in each layout.
    assert predicted < layer.nbytes <= predicted + len(layer.choices) * (96 * 4 * 6 + 128)


def test_among_equally_fast_layouts_the_smallest_is_taken() -> None:
    # Of 4x4 blocks, band4_grouped takes 18 bytes for each and band1_grouped 4 * 6.
    request = request_for("block 4x4")
    tied = costs_of({"dense": 9.0, "band4_grouped": 4.0 * TIE * 0.99, "band1_grouped": 1.0})
    apart = costs_of({"dense": 9.0, "band4_grouped": 4.0 * TIE * 1.01, "band1_grouped": 1.0})
    assert [c.layout for c in choices_for(request, tied)] == ["band4_grouped"]
    assert [c.layout for c in choices_for(request, apart)] == ["band1_grouped"]


def test_a_smaller_layout_that_is_slower_than_dense_is_not_taken() -> None:
    # 12 bytes for four weights of which one in twenty is left: far smaller than dense, and within
    # a tie of it on either side.
    request = request_for("unstructured 95 %")
    weight = stacked_weight(request)
    units = extension().int8_panels_count(address(weight), *weight.shape)
    even = units["dense"] / units["band1_gathered"]
    slower = costs_of({"dense": 1.0, "band1_gathered": even * 1.05})
    faster = costs_of({"dense": 1.0, "band1_gathered": even * 0.95})
    assert [c.layout for c in choices_for(request, slower)] == ["dense"]
    assert [c.layout for c in choices_for(request, faster)] == ["band1_gathered"]


@pytest.mark.parametrize(
    ("dense_few", "gain", "expected"),
    [
        pytest.param(99.0, WORTH_A_SECOND * 1.01, ["band1_grouped", "tiles"], id="worth it"),
        pytest.param(99.0, WORTH_A_SECOND * 0.99, ["tiles"], id="not worth its bytes"),
        pytest.param(1.0, 1.2, ["dense", "tiles"], id="dense would be faster"),
    ],
)
def test_few_tokens_get_a_layout_of_their_own_where_that_pays(
    dense_few: float, gain: float, expected: list[str]
) -> None:
    # Nanoseconds a panel, whatever the units: made so by dividing by them.
    request = request_for("dense")
    weight = stacked_weight(request)
    units = extension().int8_panels_count(address(weight), *weight.shape)
    best = min(dense_few, 10.0)
    few = {"dense": dense_few, "band1_grouped": 10.0, "tiles": gain * best}
    many = {"dense": 100.0, "band1_grouped": 90.0, "tiles": 10.0}
    costs = costs_of(
        {name: many[name] / units[name] for name in many},
        {name: few[name] / units[name] for name in few},
    )
    choices = choices_for(request, costs)
    assert [choice.layout for choice in choices] == expected
    assert [choice.most_tokens for choice in choices] == [FEW_TOKENS, ANY_TOKENS][-len(choices) :]
    assert choices[0].seconds == pytest.approx(
        1e-9 * (few if len(choices) == 2 else many)[expected[0]]
    )


@pytest.mark.parametrize("values", ["int8", "fp32"])
def test_a_weight_of_zeros_has_a_layout(values: str) -> None:
    # No units at all: every prediction but dense's may be 0.
    request = request_for("dense", values)
    (choice,) = choose_layouts(
        request, torch.zeros_like(stacked_weight(request)), costs_of(TYPICAL)
    )
    assert (choice.seconds, choice.nbytes) == (0.0, 0)


def test_explain_shows_what_was_predicted_for_all() -> None:
    choice = LayoutChoice("dense", ANY_TOKENS, 12345, 41.6e-6, {"tiles": 98.7e-6, "other": 1e-3})
    assert choice.explain() == (
        "dense: 12,345 bytes, predicted 42 us (predicted: tiles 99, other 1000)"
    )


def test_explain_says_up_to_how_many_tokens() -> None:
    choice = LayoutChoice("dense", FEW_TOKENS, 16, 1e-6, {})
    assert choice.explain() == "dense up to 16 tokens: 16 bytes, predicted 1.0 us"


def test_explain_shows_no_time_where_none_was_predicted() -> None:
    (choice,) = choices_for(request_for("dense", "bf16"))
    assert math.isnan(choice.seconds)
    assert choice.explain() == f"{choice.layout}: {choice.nbytes:,} bytes"


def test_the_note_of_a_layer_is_the_prediction_for_it() -> None:
    request = request_for("block 4x1")
    text = choose(request.weights, backend="cpu").explain()
    for choice in choices_for(request):
        assert choice.explain() in text
        assert choice.seconds > 0
