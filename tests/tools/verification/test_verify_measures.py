"""Drift, cosine, ranks, embeddings and the built-in sentences."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import scipy.stats
import torch
import transformers
from safetensors.torch import save_file

import sparse_runtime as sr
from sparse_runtime.statistics import spearman
from sparse_runtime.tools.verification import verify
from sparse_runtime.tools.verification.embedding import Embedder
from sparse_runtime.tools.verification.measures import DriftMeter, cosines
from sparse_runtime.tools.verification.texts import SENTENCES

TEXTS = ["", "a", "the cat sat on the mat", "what is this", "dogs and cats " * 12, "é 猫"]


def test_embeddings_follow_the_pipeline_up_to_their_length(base: Path, tmp_path: Path) -> None:
    """CLS and mean side by side, a Dense with tanh, Normalize: as SparseModel.encode does."""
    source = shutil.copytree(base, tmp_path / "source")
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    folders = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, folders, strict=True))
    ]
    for folder in folders[1:]:
        (source / folder).mkdir()
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    pooling = {"word_embedding_dimension": 32, **modes}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {"in_features": 64, "out_features": 5, "bias": True}
    (source / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weights = {"linear.weight": torch.randn(5, 64), "linear.bias": torch.randn(5)}
    save_file(weights, source / "2_Dense" / "model.safetensors")
    packed = tmp_path / "packed"
    sr.convert(source, packed, values="fp32", progress=False)
    model = sr.SparseModel.from_pretrained(packed)
    embedder = Embedder(source, "base", 32)
    assert embedder.max_length == 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    found = embedder.embed(states, inputs["attention_mask"].bool())
    found = torch.nn.functional.normalize(found, dim=1)
    torch.testing.assert_close(found, torch.from_numpy(model.encode(TEXTS)), rtol=0, atol=1e-5)
    report = verify(packed, source, TEXTS, progress=False)
    assert report.cosine.minimum > 1 - 1e-6
    assert report.tokens == int(inputs["attention_mask"].sum())


def test_spearman_equals_scipy_with_and_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 5, 1000):
        a = torch.randint(levels, (50,), generator=generator).double()
        b = torch.randint(levels, (50,), generator=generator).double() + a
        expected = scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic
        assert spearman(a, b) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(spearman(torch.ones(3), torch.arange(3.0)))
    assert math.isnan(spearman(torch.tensor([1.0, math.nan]), torch.arange(2.0)))


def test_drift_does_not_depend_on_batches_and_keeps_a_nan() -> None:
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    whole, parts = DriftMeter(), DriftMeter()
    whole.add(a, b)
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        parts.add(a[part], b[part])
    assert parts.max_abs == whole.max_abs == pytest.approx(float((a - b).abs().max()))
    assert parts.relative == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)
    assert whole.relative == pytest.approx(parts.relative)
    parts.add(torch.tensor([torch.nan]), torch.zeros(1))
    parts.add(a, b)
    assert math.isnan(parts.max_abs)
    assert math.isnan(parts.relative)
    zero = DriftMeter()
    zero.add(torch.zeros(2), torch.zeros(2))
    assert zero.relative == 0
    zero.add(torch.ones(2), torch.zeros(2))
    assert zero.relative == math.inf


def test_cosine_of_zero_rows() -> None:
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [0.0, -3.0]])
    assert cosines(a, b).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_built_in_sentences_vary() -> None:
    lengths = {len(text) for text in SENTENCES}
    assert len(set(SENTENCES)) == len(SENTENCES) >= 32
    assert min(lengths) == 0
    assert max(lengths) > 300
    assert any(not text.isascii() for text in SENTENCES)
