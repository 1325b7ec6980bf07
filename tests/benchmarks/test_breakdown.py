"""Where the time of a pass goes."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime import SparseModel
from sparse_runtime.benchmarks.breakdown import breakdown, render_breakdown, stage_kind
from sparse_runtime.benchmarks.encoder_shapes import load_shape
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
    assert "attention" in sums
    assert any(kind.startswith("intermediate.dense") for kind in sums)
    assert all(seconds > 0 for seconds in sums.values())
    assert render_breakdown("title", sums).row_count == len(sums)
    with model.stage_times() as times:
        pass
    model(input_ids=ids)
    assert times == []  # nothing is collected outside of the block


def test_the_reference_has_no_stages() -> None:
    packed = random_packed(load_shape("minilm"), "dense", None, "int8")
    model = SparseModel.from_packed(packed, backend="reference")
    message = "'reference' does not time its stages"
    with pytest.raises(RuntimeError, match=message), model.stage_times():
        pass
