"""Papers' own files of other families than BERT: written where they open, refused where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sparse_runtime as sr
from sparse_runtime.compress.training.run import train

SHORT = ["*.steps=4", "*.batch_size=15"]


@pytest.mark.parametrize("recipe", ["movement", "soft-movement", "cap"])
def test_masked_models_are_bert_alone(
    recipe: str, checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    said = r"stage 'prune', layout: 'cap': expected a model of type bert, .* got distilbert; change"
    model, out = checkpoints["distilbert"], tmp_path / "out"
    with pytest.raises(ValueError, match=said):
        train(model, recipe, labelled, out, paper_out=tmp_path / "paper", changes=SHORT)
    assert not (tmp_path / "out.training").exists()


def test_sparsebert_of_a_distilbert(checkpoints: Any, labelled: Any, tmp_path: Path) -> None:
    model, paper = checkpoints["distilbert"], tmp_path / "paper"
    train(model, "sparsebert", labelled, tmp_path / "out", paper_out=paper, changes=SHORT)
    theirs, ours = sr.inspect(paper), sr.inspect(tmp_path / "out")
    assert "SparseBERT or CoFi training model" in [one.layout for one in theirs.recognised]
    assert [one.name for one in theirs.matrices] == [one.name for one in ours.matrices]
