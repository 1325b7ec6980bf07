"""Whole models whose layers keep a foreign family's quantized arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_runtime import SparseModel
from sparse_runtime.formats import pack
from sparse_runtime.spec import ActivationSpec, LinearSpec, QuantizedAttention, Structure, ValueSpec
from sparse_runtime.store import PackedLinear, load, save

STATIC = ActivationSpec("static", "uint8", 0.03, 128)
ATTENTION = QuantizedAttention(
    query=STATIC,
    key=ActivationSpec("static", "int8", 0.03),
    probabilities=ActivationSpec("static", "uint8", 1 / 255),
    value=STATIC,
    context=ActivationSpec("static", "int8", 0.02, 5),
)


def requantizing(linear: PackedLinear, outputs: ActivationSpec | None) -> PackedLinear:
    """The same weight with zero points, static inputs and requantized outputs."""
    weight, rows = linear.packed, linear.packed.spec.shape[0]
    values = ValueSpec("int8", zero_points=True)
    spec = LinearSpec(weight.spec.shape, Structure("dense"), values, STATIC, outputs)
    zeros = torch.full((rows,), 3, dtype=torch.int8)
    stored = (weight.unpack().int() + 3).clamp(-128, 127)
    return PackedLinear(pack(stored.to(torch.int8), spec, weight.scales, zeros), linear.bias)


@pytest.fixture
def packed(make_reference: Any, make_packed: Any) -> Any:
    """BERT of two layers as QAT leaves it: the first one's query, key and value, all attention."""
    model = make_packed(make_reference("bert", "Model"), values="int8")
    for part, outputs in (("query", STATIC), ("key", STATIC), ("value", None)):
        name = f"encoder.layer.0.attention.self.{part}"
        model.linears[name] = requantizing(model.linears[name], outputs)
    model.attention = {f"encoder.layer.{i}": ATTENTION for i in range(2)}
    return model


def test_backends_agree_on_a_quantized_model_over_and_over(packed: Any, make_batch: Any) -> None:
    reference = SparseModel.from_packed(packed, backend="reference")
    ours = SparseModel.from_packed(packed)
    # A first pass is recorded where it can be run again; batches of other lengths follow it.
    for columns in (9, 5, 9):
        batch = make_batch(0, columns=columns)
        mask = batch["attention_mask"].bool()
        y, expected = ours(**batch).last_hidden_state, reference(**batch).last_hidden_state
        # Floats rounded otherwise may fall on the other side of a tie, and be a step of 8 bits off.
        error = (y - expected)[mask].abs()
        assert float(error.median()) < 1e-5
        assert float(error.max()) < 0.2


def test_the_quantizers_of_a_layer_change_its_output_alone(packed: Any, make_batch: Any) -> None:
    batch = make_batch(0)
    states = []
    for attention in (packed.attention, {"encoder.layer.1": ATTENTION}):
        packed.attention = attention
        model = SparseModel.from_packed(packed, backend="reference")
        states.append(model(**batch, output_hidden_states=True).hidden_states)
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.equal(states[0][1], states[1][1])


def test_a_saved_model_computes_what_it_did(packed: Any, make_batch: Any, tmp_path: Any) -> None:
    save(packed, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.attention == packed.attention
    batch = make_batch(0)
    ys = [SparseModel.from_packed(m)(**batch).last_hidden_state for m in (packed, again)]
    assert torch.equal(*ys)


@pytest.mark.parametrize(
    "name", ["encoder.layer.2", "encoder.layer.1.attention", "bert.encoder.layer.0", "encoder"]
)
def test_quantized_attention_of_no_known_layer_is_refused(packed: Any, name: str) -> None:
    packed.attention[name] = ATTENTION
    with pytest.raises(ValueError, match=rf"of no known part: {name} \(quantized attention\)"):
        SparseModel.from_packed(packed)
