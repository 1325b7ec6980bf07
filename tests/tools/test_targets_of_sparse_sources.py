"""Targets of sources that have zeros already: what solving may fill is counted as filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

import sparse_runtime as sr
from sparse_runtime.compress import Pattern, encoder_linears
from sparse_runtime.compress.oneshot.allocation import size_costs
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.sensitivity import units_of
from sparse_runtime.tools.layer_latency import pack_model
from sparse_runtime.tools.targets import prune_to_target

WORDS = [f"word{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % 50] for j in range(3 + i % 9)) for i in range(24)]
DENSE, HALF = LayerFormat.parse("dense int8"), LayerFormat.parse("2:4 int8")


def bert(pattern: str | None) -> nn.Module:
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=60,
            num_hidden_layers=2,
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=2,
        )
    ).eval()
    if pattern is not None:
        with torch.no_grad():
            for linear in encoder_linears(model).values():
                linear.weight.mul_(Pattern.parse(pattern).mask(linear.weight.abs()))
    return model


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@pytest.mark.parametrize(
    ("source", "target", "formats"),
    [
        ("2:4", "size=1x", ["dense int8"]),
        ("2:4", "size=0.9x", ["dense int8", "dense int4"]),
        ("unstructured@0.9", "size=0.7x", ["dense int8", "2:4 int8"]),
        ("unstructured@0.9", "size=0.7x", ["unstructured@0.5 int8"]),
    ],
)
def test_what_is_packed_stays_within_the_target(
    tmp_path: Path, source: str, target: str, formats: list[str]
) -> None:
    arguments: dict[str, Any] = {"target": target, "formats": formats, "progress": False}
    model = bert(source)
    report = prune_to_target(
        model, tmp_path / "out", calibration=TEXTS, tokenizer=tokenizer(), **arguments
    )
    found = sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    assert (
        sum(layer.bytes for layer in found.layers)
        <= report.allocation.cost
        <= report.allocation.budget
    )
    # Shares are of dense INT8, whatever the source's zeros.
    units = units_of(model)
    dense = size_costs(bert(None), units, [], DENSE)
    assert report.allocation.budget == float(target[5:-1]) * dense.total(
        dict.fromkeys(units, DENSE)
    )


def test_a_solved_dense_layer_is_packed_as_convert_sees_it(tmp_path: Path) -> None:
    model = bert("2:4")
    report = prune_to_target(
        model,
        tmp_path / "out",
        target="size=1x",
        formats=["dense int8"],
        calibration=TEXTS,
        tokenizer=tokenizer(),
        progress=False,
    )
    found = sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = pack_model(model, report.allocation.by_layer()).linears
    seen = {layer.name: layer.structure for layer in found.layers}
    assert {name: str(one.packed.spec.structure) for name, one in packed.items()} == seen
    # Rounding alone has filled few of the zeros.
    assert set(seen.values()) != {"dense"}


def test_times_are_those_of_what_solving_may_leave() -> None:
    model = bert("unstructured@0.9")
    names = list(encoder_linears(model))
    for choice, structure in ((DENSE, "dense"), (HALF, "2:4")):
        packed = pack_model(model, dict.fromkeys(names, choice), solved=False).linears
        assert {str(one.packed.spec.structure) for one in packed.values()} == {structure}
    solved = pack_model(model, dict.fromkeys(names, DENSE)).linears
    assert {str(one.packed.spec.structure) for one in solved.values()} == {"unstructured"}
