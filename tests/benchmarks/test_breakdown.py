"""Where the time of a pass goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_runtime import _C, SparseModel
from sparse_runtime.benchmarks.breakdown import breakdown, render_breakdown, stage_kind
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.floors import measure_peaks, product_floors, stage_floor
from sparse_runtime.benchmarks.models import random_packed


def test_layers_are_summed_by_kind() -> None:
    assert stage_kind("encoder.layer.11.output.dense (norm)") == "output.dense (norm)"
    both = "a.layer.0.self.query + a.layer.0.self.key"
    assert stage_kind(both) == "self.query + self.key"
    assert stage_kind("to rows") == "to rows"


def test_a_model_s_stages_are_timed_and_shown() -> None:
    packed = random_packed(load_shape("minilm"), "dense", None, "int8")
    model = SparseModel.from_packed(packed, backend="cpu")
    ids = torch.ones(1, 20, dtype=torch.long)
    sums = breakdown(model, {"input_ids": ids})
    # With few tokens the heads are tasks, which project and attend; not on AMX.
    both = "attention.self.query + attention.self.key + attention.self.value + attention"
    assert {both, "attention"} & sums.keys()
    assert any(kind.startswith("intermediate.dense") for kind in sums)
    assert all(seconds > 0 for seconds in sums.values())
    floors = product_floors(model, [20], measure_peaks(2))
    assert stage_floor(both, floors) == pytest.approx(
        sum(floors[name] for name in both.split(" + "))
    )
    # Each stage, the linear layers together, and the whole pass.
    assert render_breakdown("title", sums, floors).row_count == len(sums) + 2
    with model.stage_times() as times:
        pass
    model(input_ids=ids)
    assert times == []  # nothing is collected outside of the block


def test_floors_count_nonzeros_and_pairs_of_tokens() -> None:
    shape = load_shape("minilm")
    packed = random_packed(shape, "unstructured", 0.9, "int8")
    model = SparseModel.from_packed(packed, backend="cpu")
    peaks = {"int8": 2e9, "fp32": 1e9}
    floors = product_floors(model, [3, 5], peaks)
    weights = [
        linear.packed.unpack()
        for name, linear in packed.linears.items()
        if name.endswith("intermediate.dense")
    ]
    kept = sum(int((weight != 0).sum()) for weight in weights)
    assert floors["intermediate.dense"] == pytest.approx(8 * 2 * kept / 2e9)
    attention = 4 * (3**2 + 5**2) * shape.hidden * shape.layers
    assert floors["attention"] == pytest.approx(attention / 1e9)
    # A matrix unit a hundred times as fast multiplies the dense matrix sooner.
    dense = sum(weight.numel() for weight in weights)
    tiles = product_floors(model, [8], peaks | {"int8_tiles": 2e11})
    assert tiles["intermediate.dense"] == pytest.approx(8 * 2 * dense / 2e11)
    both = floors["attention.self.query"] + floors["attention.self.key"]
    assert stage_floor("attention.self.query + attention.self.key", floors) == pytest.approx(both)
    for step in ("ending", "moments", "norm"):  # with many panels, and with few
        assert stage_floor(f"output.dense ({step})", floors) is None
    assert stage_floor("embed", floors) is None


def test_every_instruction_has_a_peak_that_its_kernels_stay_below() -> None:
    peaks = measure_peaks(1)
    assert {"int8", "fp32", "bf16"} <= peaks.keys()
    weight = np.random.default_rng(0).integers(-127, 128, (64, 256), dtype=np.int8)
    packed = _C.int8_panels_pack(weight.ctypes.data, 64, 256, "band4_grouped")
    seconds = _C.int8_panels_seconds(packed, 1, 4, 50)
    speed = 2 * 64 * weight.size / seconds
    # Clocks may change between the two measurements.
    assert speed < 1.5 * peaks["int8"]
    assert peaks["int8"] < 50 * speed


def test_the_reference_has_no_stages() -> None:
    packed = random_packed(load_shape("minilm"), "dense", None, "int8")
    model = SparseModel.from_packed(packed, backend="reference")
    message = "'reference' does not time its stages"
    with pytest.raises(RuntimeError, match=message), model.stage_times():
        pass
