"""Files of texts and of pairs: what is read, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_runtime.cli.text_files import read_calibration, read_pairs, read_texts


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path: Path) -> None:
    # U+0085 and U+2028 are line ends for str.splitlines, but part of a text here.
    content = "\ufeffone\r\n\ntwo\u0085x\u2028y\nlast".encode()
    expected = ["one", "", "two\u0085x\u2028y", "last"]
    assert read_texts(write(tmp_path / "f", content)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: expected one text a line, got an empty file"),
        (b"a\nb\xff\n", "f: line 2 is not UTF-8"),
    ],
)
def test_files_that_hold_no_texts(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_texts(write(tmp_path / "f", content))


def test_calibration_texts_are_lines_or_the_texts_of_a_table(tmp_path: Path) -> None:
    assert read_calibration(write(tmp_path / "f.txt", b"a,b\n\nc\n"), "--data") == ["a,b", "c"]
    table = write(tmp_path / "train.csv", b'label,text\nx,"a, b"\ny,c\n')
    rows = b'{"sentence1": "a", "sentence2": "b", "score": 1}\n'
    assert read_calibration(table, "--data") == ["a, b", "c"]
    assert read_calibration(str(tmp_path), "--data") == ["a, b", "c"]
    assert read_calibration(write(tmp_path / "f.jsonl", rows), "--data") == ["a", "b"]
    with pytest.raises(ValueError, match=r"expected a column text, .*; got words"):
        read_calibration(write(tmp_path / "f.tsv", b"words\na\n"), "--data")
    with pytest.raises(FileNotFoundError, match=r"--data .*none.csv: there is no such file"):
        read_calibration(str(tmp_path / "none.csv"), "--data")


def test_pairs_go_by_the_header_and_quotes_are_letters(tmp_path: Path) -> None:
    content = b'source\tscore\tsentence1\tsentence2\nx\t3.5\t"a\tb"\n\ny\t-1\tc\t\n'
    pairs, scores = read_pairs(write(tmp_path / "f", content))
    assert pairs == [('"a', 'b"'), ("c", "")]
    assert scores == [3.5, -1.0]
    pairs, scores = read_pairs(write(tmp_path / "f", b"sentence2\tsentence1\nb\ta"))
    assert pairs == [("a", "b")]
    assert scores is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"sentence1\tother\na\tb\n", "the header lacks sentence2"),
        (b"a\tb\n", "the header lacks sentence1 and sentence2"),
        (b"sentence1\tsentence2\n", "expected sentence pairs below the header, got none"),
        (b"sentence1\tsentence2\na\n", "line 2 has 1 columns, expected 2"),
        (b"score\tsentence1\tsentence2\n1\ta\tb\nx\ta\tb\n", "line 3: expected a number as score"),
        (b"sentence1\tsentence2\na\t\xe9\n", "line 2 is not UTF-8"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path / "f", content))
