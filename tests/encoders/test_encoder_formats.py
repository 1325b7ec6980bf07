"""Every structure and value type through the whole encoder: cpu against reference, and oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sparse_runtime import SparseModel

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")
# Sizes 32 and 48 of the layers: 5 does not divide them, so blocks and groups are padded.
FLOATS = [
    ("2:4", "fp32", None),
    ("3:5", "fp32", None),
    ("unstructured", "fp32", 0.8),
    ("block:4x1", "fp32", 0.8),
    ("block:5x8", "bf16", 0.5),
    ("dense", "fp16", None),
]
INTEGERS = [
    ("dense", "int8", None),
    ("2:4", "int8", None),
    ("unstructured", "int8", 0.9),
    ("block:1x4", "int8", 0.8),
    ("dense", "int4", None),
]


def dequantized(theirs: torch.nn.Module, packed: Any) -> torch.nn.Module:
    """The transformers model with the packed weights' logical values."""
    dense = copy.deepcopy(theirs)
    for name, linear in packed.linears.items():
        dense.get_submodule(name).weight.data = linear.packed.dequantize()
    return dense


@pytest.mark.parametrize("form", FLOATS, ids=lambda form: f"{form[0]} {form[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_float_values(
    family: str, form: Any, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    structure, values, sparsity = form
    theirs = make_reference(family, "ForSequenceClassification")
    packed = make_packed(theirs, structure, values, sparsity=sparsity)
    batch = make_batch(theirs.config.pad_token_id)
    with torch.no_grad():
        expected = dequantized(theirs, packed)(**batch).logits
    for backend in ("cpu", "reference"):
        logits = SparseModel.from_packed(packed, backend=backend)(**batch).logits
        assert (logits - expected).abs().max().item() < 1e-5


@pytest.mark.parametrize("form", INTEGERS, ids=lambda form: f"{form[0]} {form[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_inputs(
    family: str, form: Any, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    structure, values, sparsity = form
    theirs = make_reference(family, "Model")
    packed = make_packed(theirs, structure, values, sparsity=sparsity)
    batch = make_batch(theirs.config.pad_token_id)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = dequantized(theirs, packed)(**batch).last_hidden_state[real]
    states = [
        SparseModel.from_packed(packed, backend=backend)(**batch).last_hidden_state[real]
        for backend in ("auto", "reference")
    ]
    # A sum that rounds differently may move an input by one step of 1/127 of its largest value;
    # the same step bounds what quantizing the inputs costs against the float product.
    assert (states[0] - states[1]).abs().max().item() < 0.02
    for state in states:
        similar = torch.nn.functional.cosine_similarity(state, expected, dim=1)
        assert similar.min().item() > 0.995


def test_projections_that_quantize_their_input_differently(
    make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    # query and key in int8, value in fp32: three layers that cannot be run as one
    theirs = make_reference("bert", "Model")
    packed = make_packed(theirs, "dense", "int8")
    floats = make_packed(theirs)
    for name in [name for name in packed.linears if name.endswith("self.value")]:
        packed.linears[name] = floats.linears[name]
    batch = make_batch(0)
    states = [
        SparseModel.from_packed(packed, backend=backend)(**batch).last_hidden_state
        for backend in ("auto", "reference")
    ]
    assert (states[0] - states[1]).abs().max().item() < 0.02
