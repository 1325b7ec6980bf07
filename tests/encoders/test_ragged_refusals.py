"""What a packed model states of its layers must agree with its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparse_runtime import SparseModel
from sparse_runtime.store import PackedModel


def refused(packed: PackedModel, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseModel.from_packed(packed)


def test_missing_tensors_are_not_taken_for_an_absent_half(make_ragged: Any) -> None:
    ragged = make_ragged("bert")
    packed = ragged.packed()
    refused(replace(packed, absent=()), "missing: .*encoder.layer.1.attention.self.query")
    refused(
        replace(packed, absent=(*packed.absent, "encoder.layer.4.ffn")),
        "absent, but holds encoder.layer.4.intermediate.dense, .*LayerNorm",
    )
    refused(replace(packed, absent=("encoder.layer.9.ffn",)), "layer.9.ffn: expected .* 5 layers")
    refused(replace(packed, head_size=5), "query expected")


def test_sizes_beyond_the_configuration_are_refused(make_ragged: Any) -> None:
    packed = make_ragged("bert").packed()
    config = packed.config
    refused(replace(packed, config={**config, "num_attention_heads": 2}), "layer.4.*query expected")
    refused(replace(packed, config={**config, "intermediate_size": 40}), "layer.4.*dense expected")


def test_pruned_heads_must_agree_with_the_tensors(make_ragged: Any) -> None:
    packed = make_ragged("bert").packed()

    def changed(pruned: Any) -> PackedModel:
        return replace(packed, config={**packed.config, "pruned_heads": pruned})

    # Layer 0 has lost head 1; of layer 2 one head is left, and more than two are listed nowhere.
    SparseModel.from_packed(changed({"0": [1], "1": [0, 1, 2, 3], "2": [0, 2]}))
    refused(changed({"4": [1]}), "layer.4.attention.self.query expected .24, 32., got .32, 32.")
    refused(changed({"4": [0, 1, 2, 3]}), "lists every head of layer 4; state .* in absent")
    refused(changed({"0": [4]}), "expected lists of heads below 4")
    refused(changed([1]), "expected lists of heads below 4")


def test_mpnet_keeps_its_heads(make_ragged: Any) -> None:
    refused(make_ragged("mpnet").packed(), "layer.0.attention.attn.q expected .32, 32.")
