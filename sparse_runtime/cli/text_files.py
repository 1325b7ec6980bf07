"""Text files that commands read: one text a line, or a table of sentence pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

STDIN = "-"
_TABLES = (".csv", ".tsv", ".jsonl")


def read_texts(path: str) -> list[str]:
    """The lines of a UTF-8 file, or of stdin for "-"; empty lines are empty texts.

    Raises:
        ValueError: the file holds no line or is not UTF-8.
        OSError: it cannot be read.
    """
    return list(iterate_texts(path))


def read_calibration(path: str, option: str) -> list[str]:
    """Texts that hold something: lines, or the text columns of a table or of a data folder.

    Tables (csv, tsv, jsonl) and folders are read as training reads them, each text once.

    Args:
        path: of the file or folder, or "-".
        option: that gave it, such as "--data", for errors.

    Raises:
        ValueError: none does, or the file is not UTF-8.
        OSError: there is no such file, or it cannot be read.
    """
    place = Path(path).expanduser()
    if path != STDIN and not place.exists():
        raise FileNotFoundError(
            f"{option} {path}: there is no such file; give one with a text a line, a table with a "
            "column text, or - for stdin"
        )
    if path != STDIN and (place.is_dir() or place.suffix in _TABLES):
        from ..compress.training.data import load_texts

        texts = load_texts(place)
    else:
        texts = read_texts(path)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"{_name(path)}: expected texts, got empty ones only")
    return texts


def iterate_texts(path: str) -> Iterator[str]:
    """The lines of :func:`read_texts` one by one, as they arrive."""
    empty = True
    for text in _lines(path):
        empty = False
        yield text
    if empty:
        raise ValueError(f"{_name(path)}: expected one text a line, got an empty file")


def _lines(path: str) -> Iterator[str]:
    number = 0
    try:
        if path == STDIN:
            for number, line in enumerate(sys.stdin.buffer, 1):
                yield _text(line, number)
            return
        with Path(path).expanduser().open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _text(line, number)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{_name(path)}: line {number} is not UTF-8 ({error.reason}); convert the file first"
        ) from error


def read_pairs(path: str) -> tuple[list[tuple[str, str]], list[float] | None]:
    """Sentence pairs of a tab-separated UTF-8 file without quoting, and their scores.

    The header names the columns ``sentence1`` and ``sentence2``, and ``score`` where there are
    scores; other columns are ignored.

    Raises:
        ValueError: columns are missing, a row is short, or a score is not a number.
        OSError: the file cannot be read.
    """
    rows = (line.split("\t") for line in _lines(path))
    header = next(rows, None)
    if header is None:
        raise ValueError(f"{_name(path)}: expected a header and sentence pairs, got an empty file")
    missing = [column for column in ("sentence1", "sentence2") if column not in header]
    if missing:
        raise ValueError(
            f"{_name(path)}: the header lacks {' and '.join(missing)}; expected tab-separated "
            f"columns sentence1, sentence2 and, where there are scores, score; got {header}"
        )
    first, second = header.index("sentence1"), header.index("sentence2")
    at = header.index("score") if "score" in header else None
    pairs, scores = [], []
    for number, row in enumerate(rows, 2):
        if row == [""]:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{_name(path)}: line {number} has {len(row)} columns, expected {len(header)}"
            )
        pairs.append((row[first], row[second]))
        if at is not None:
            scores.append(_score(row[at], path, number))
    if not pairs:
        raise ValueError(f"{_name(path)}: expected sentence pairs below the header, got none")
    return pairs, scores if at is not None else None


def _score(text: str, path: str, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{_name(path)}: line {number}: expected a number as score, got {text!r}"
        ) from None


def _text(line: bytes, number: int) -> str:
    # Editors of some systems mark the beginning of a file.
    return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")


def _name(path: str) -> str:
    return "standard input" if path == STDIN else path
