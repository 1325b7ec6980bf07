"""Pipelines and sentence-transformers on packed directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

import sparse_runtime as sr

TEXTS = ["sparse weights", "a cat", "weights and a cat on the mat"]


def packed_layers(model: torch.nn.Module) -> int:
    return sum(isinstance(module, sr.Linear) for module in model.modules())


def test_text_classification(make_packed: Any) -> None:
    packed = make_packed("Bert", "ForSequenceClassification", num_labels=3)
    classify = pipeline("text-classification", model=str(packed), device="cpu")
    assert packed_layers(classify.model) == 12
    got = classify(TEXTS, top_k=None)
    ours = sr.SparseModel.from_pretrained(packed)
    inputs = classify.tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = ours(**inputs).logits.softmax(-1)
    for row, scores in zip(got, expected, strict=True):
        by_label = {entry["label"]: entry["score"] for entry in row}
        assert [by_label[f"LABEL_{i}"] for i in range(3)] == pytest.approx(
            scores.tolist(), abs=0.01
        )


def test_feature_extraction(make_packed: Any) -> None:
    packed = make_packed("Bert", "Model")
    extract = pipeline("feature-extraction", model=str(packed), device="cpu")
    assert packed_layers(extract.model) == 12
    got = torch.tensor(extract(TEXTS[0]))
    inputs = extract.tokenizer(TEXTS[:1], return_tensors="pt")
    expected = sr.SparseModel.from_pretrained(packed)(**inputs).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_fill_mask(make_packed: Any) -> None:
    fill = pipeline("fill-mask", model=str(make_packed("Bert", "ForMaskedLM")), device="cpu")
    assert len(fill("a [MASK] cat", top_k=2)) == 2 and packed_layers(fill.model) == 12


@pytest.fixture
def sentence_checkpoint(make_checkpoint: Any, tmp_path: Path) -> Path:
    """A float sentence-transformers directory."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(make_checkpoint()))
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    model.save(str(tmp_path / "sentence"))
    return tmp_path / "sentence"


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether embeddings point the same way: int8 rows, attention in another precision."""
    scale = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return bool(((got * expected).sum(1) / scale > 0.9995).all())


def test_sentence_transformers(sentence_checkpoint: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    packed, again = tmp_path / "packed", tmp_path / "again"
    sr.convert(sentence_checkpoint, packed, progress=False)
    model = SentenceTransformer(str(packed), device="cpu")
    assert packed_layers(model) == 12
    got = model.encode(TEXTS)
    assert close(got, sr.SparseModel.from_pretrained(packed).encode(TEXTS))
    model.save(str(again))
    assert np.array_equal(SentenceTransformer(str(again), device="cpu").encode(TEXTS), got)
    assert close(sr.SparseModel.from_pretrained(again).encode(TEXTS), got)


def test_sentence_transformers_packing_while_loading(
    sentence_checkpoint: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(sentence_checkpoint),
        device="cpu",
        model_kwargs={"quantization_config": sr.SparseRuntimeConfig(values="int8")},
    )
    assert packed_layers(model) == 12
    got = model.encode(TEXTS)
    assert close(got, SentenceTransformer(str(sentence_checkpoint), device="cpu").encode(TEXTS))
    model.save(str(tmp_path / "saved"))
    reopened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert packed_layers(reopened) == 12
    assert np.array_equal(reopened.encode(TEXTS), got)
    assert close(sr.SparseModel.from_pretrained(tmp_path / "saved").encode(TEXTS), got)


def test_cross_encoder(make_packed: Any, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    packed = make_packed("Bert", "ForSequenceClassification", num_labels=1)
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2])]
    model = CrossEncoder(str(packed), device="cpu")
    assert packed_layers(model) == 12
    got = model.predict(pairs)
    inputs = model.tokenizer(
        [a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt"
    )
    expected = sr.SparseModel.from_pretrained(packed)(**inputs).logits.sigmoid().flatten()
    assert got == pytest.approx(expected.numpy(), abs=0.01)
    assert len(model.rank(TEXTS[0], TEXTS)) == 3
    model.save_pretrained(str(tmp_path / "saved"))
    assert np.array_equal(CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(pairs), got)
    sr.SparseModel.from_pretrained(tmp_path / "saved")
