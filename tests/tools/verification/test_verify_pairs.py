"""Pairs of texts, and how scores are ranked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

import sparse_runtime as sr
from sparse_runtime.tools.verification import verify

Checkpoints = Callable[..., Path]
Converter = Callable[..., Path]

TEXTS = ["", "a", "the cat sat on the mat", "what is this", "dogs and cats " * 12, "é 猫"]
PAIRS = [("a cat", "a dog"), ("one two", "one two three"), ("red", "blue sky"), ("up", "down")]
SCORES = [3.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_pairs_of_an_embedding_model_are_ranked_by_cosine(
    base: Path, pack: Converter, values: str
) -> None:
    packed = pack(base, values=values)
    report = verify(packed, base, pairs=PAIRS, scores=SCORES, batch_size=3, progress=False)
    assert report.texts == 2 * len(PAIRS)
    model = sr.SparseModel.from_pretrained(packed)
    similar = []
    for pair in PAIRS:
        a, b = torch.from_numpy(model.encode(list(pair), batch_size=1))
        similar.append(float(torch.cosine_similarity(a, b, dim=0)))
    assert report.spearman is not None
    expected = scipy.stats.spearmanr(similar, SCORES).statistic
    assert report.spearman.packed == pytest.approx(expected, abs=1e-9)
    assert report.spearman.drop == report.spearman.original - report.spearman.packed
    assert [check.name for check in report.checks].count("max_spearman_drop") == 1
    # Texts come before pairs and take no part in the ranking.
    both = verify(packed, base, TEXTS, pairs=PAIRS, scores=SCORES, progress=False)
    assert both.texts == len(TEXTS) + 2 * len(PAIRS)
    assert both.spearman is not None
    assert both.spearman.pairs == len(PAIRS)
    assert both.spearman.packed == pytest.approx(expected, abs=1e-9)
    # Numbers of arrays and tensors are numbers too.
    for scores in (np.array(SCORES, np.float32), torch.tensor(SCORES), tuple(map(int, SCORES))):
        again = verify(packed, base, pairs=PAIRS, scores=scores, batch_size=3, progress=False)
        assert again.spearman == report.spearman


def test_pairs_of_a_regression_head_are_ranked_by_its_output(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", num_labels=1)
    packed = pack(source, values="fp32")
    report = verify(packed, source, pairs=PAIRS, scores=SCORES, progress=False)
    assert report.texts == len(PAIRS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.BertForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        logits = [float(model(**tokenizer(*pair, return_tensors="pt")).logits) for pair in PAIRS]
    expected = scipy.stats.spearmanr(logits, SCORES).statistic
    assert report.spearman is not None
    assert report.spearman.original == pytest.approx(expected, abs=1e-9)
    assert report.spearman.packed == pytest.approx(expected, abs=1e-9)
    assert report.agreement is None


def test_scores_need_a_model_that_states_a_similarity(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", num_labels=3)
    packed = pack(source, values="fp32")
    with pytest.raises(ValueError, match="with 3 outputs says no similarity"):
        verify(packed, source, pairs=PAIRS, scores=SCORES, progress=False)
    report = verify(packed, source, pairs=PAIRS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == len(PAIRS)
    assert report.spearman is None
