"""Sentences come from the data folder, and from the built-in list where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_runtime.benchmarks.sentences import (
    BUILT_IN,
    VARIABLE,
    missing_data,
    sentences,
    similarity_pairs,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_without_data_the_built_in_sentences_are_repeated(folder: Path) -> None:
    found = sentences(len(BUILT_IN) + 2)
    assert found.texts[: len(BUILT_IN)] == list(BUILT_IN)
    assert found.texts[-2:] == list(BUILT_IN[:2])
    assert "built-in" in found.origin
    assert str(folder) in found.origin
    assert similarity_pairs() is None
    assert VARIABLE in missing_data()


def test_the_built_in_sentences_are_varied() -> None:
    assert len(BUILT_IN) == len(set(BUILT_IN)) == 40
    lengths = sorted(len(text.split()) for text in BUILT_IN)
    assert lengths[0] == 1
    assert lengths[-1] > 20


def test_every_set_is_read_in_its_own_form(folder: Path) -> None:
    (folder / "banking77").mkdir()
    (folder / "banking77" / "test.csv").write_text(
        'text,category\nHow do I pay?,a\n"First, second",b\n', encoding="utf-8"
    )
    (folder / "mr").mkdir()
    # 0x85 is a line end to str.splitlines, and a character here.
    (folder / "mr" / "rt-polarity.all").write_bytes(b"1 good \x85 film .\n0 bad .\n")
    (folder / "stsb_open").mkdir()
    header = "source\tscore\tsentence1\tsentence2\n"
    (folder / "stsb_open" / "dev.tsv").write_text(header + 'x\t2.5\tsays "a\tb\n', encoding="utf-8")
    (folder / "stsb_open" / "test.tsv").write_text(header + "x\t0.0\tc\té\n", encoding="utf-8")
    found = sentences(100)
    assert sorted(found.texts) == sorted(
        ["How do I pay?", "First, second", "good \x85 film .", "bad .", 'says "a', "b", "c", "é"]
    )
    assert found.origin == "sentences of banking77, mr, stsb_open"
    pairs = similarity_pairs()
    assert pairs is not None
    assert pairs.texts == [('says "a', "b"), ("c", "é")]
    assert pairs.scores == [2.5, 0.0]
    # A small count takes from every set.
    few = sentences(3).texts
    assert any(text in few for text in ("How do I pay?", "First, second"))
    assert any(text in few for text in ("good \x85 film .", "bad ."))


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="a count from 1, got 0"):
        sentences(0)
