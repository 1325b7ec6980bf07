"""Heads and neurons removed and the rest quantized: what is packed is smaller, to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import BertTokenizer

import sparse_runtime as sr
from sparse_runtime import SparseModel, store
from sparse_runtime.compress import encoder_linears
from sparse_runtime.compress.oneshot.plans import SearchPlan
from sparse_runtime.compress.oneshot.prune import prune

MakeModel = Callable[[str], nn.Module]

WORDS = [f"word{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % 50] for j in range(3 + i % 9)) for i in range(24)]


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def logits(folder: Path) -> Tensor:
    ids = torch.arange(24).view(2, 12) % 50
    return SparseModel.from_pretrained(folder, backend="reference")(input_ids=ids).logits


def test_the_report_says_what_went(make_model: MakeModel) -> None:
    model = make_model("bert")
    plan = SearchPlan(keep_flops=0.5, progress=False)
    report = prune(model, None, calibration=TEXTS, plan=plan, tokenizer=tokenizer(), progress=False)
    assert plan.removed is not None and plan.removed.neurons_removed > 0
    weights = [linear.weight for linear in encoder_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert report.sparsity == pytest.approx(zeros / sum(weight.numel() for weight in weights))
    assert report.sparsity > 0.3
    said = report.to_dict()
    assert said["removed"] == plan.removed.to_dict() and said["sparsity"] == report.sparsity
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert f"heads and {plan.removed.neurons_removed} neurons; the others take" in text
    assert f"{report.sparsity:.1%} zeros" in text and "0 layers" not in text


@pytest.mark.parametrize(
    ("family", "values", "activations"),
    [
        ("bert", "int8", "auto"),
        ("bert", "int4", "symmetric"),
        ("distilbert", "int8", "auto"),
        ("roberta", "int8", "auto"),
    ],
)
def test_what_went_is_packed_no_more(
    family: str, values: str, activations: str, make_model: MakeModel, tmp_path: Path
) -> None:
    plan = SearchPlan(keep_flops=0.6, progress=False)
    prune(
        make_model(family),
        tmp_path / "pruned",
        tokenizer=tokenizer(),
        calibration=TEXTS,
        values=values,
        activations=activations,
        plan=plan,
        progress=False,
    )
    source = tmp_path / "pruned"
    assert plan.removed is not None
    sr.convert(source, tmp_path / "whole", crop="none", progress=False)
    report = sr.convert(source, tmp_path / "cropped", progress=False)
    cropped = {layer.name: layer for layer in report.cropped}
    assert any(layer.heads for layer in report.cropped)
    assert any(layer.neurons for layer in report.cropped)
    for kept in plan.removed.layers:
        heads = tuple((~kept.heads).nonzero().squeeze(1).tolist())
        (layer,) = (one for name, one in cropped.items() if name.endswith(kept.name))
        assert (layer.heads, layer.neurons) == (heads, int((~kept.neurons).sum()))
    whole, small = (store.load(tmp_path / name).linears for name in ("whole", "cropped"))
    assert {linear.packed.spec.values.dtype for linear in small.values()} == {values}
    taken = [
        sum(linear.packed.size().total for linear in linears.values()) for linears in (whole, small)
    ]
    assert taken[1] < taken[0]
    assert torch.equal(logits(tmp_path / "whole"), logits(tmp_path / "cropped"))


def test_a_calibrated_conversion_crops_what_it_solved(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model("bert")
    plan = SearchPlan(keep_flops=0.6, progress=False)
    prune(
        model,
        tmp_path / "pruned",
        tokenizer=tokenizer(),
        calibration=TEXTS,
        plan=plan,
        progress=False,
    )
    reports = [
        sr.convert(
            tmp_path / "pruned", tmp_path / crop, calibration=TEXTS, crop=crop, progress=False
        )
        for crop in ("none", "auto")
    ]
    assert plan.removed is not None
    assert [layer.neurons for layer in reports[1].cropped] == [
        int((~kept.neurons).sum()) for kept in plan.removed.layers
    ]
    assert torch.equal(logits(tmp_path / "none"), logits(tmp_path / "auto"))
