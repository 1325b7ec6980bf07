"""Rows of csv, tsv, jsonl and txt files, a dict each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

LABELS = ("label", "category", "score")
SECOND = ("text2", "sentence2")
FIRST = ("text", "sentence", "text1", "sentence1")
_TEXTS = (*FIRST, *SECOND)
_READ = (*_TEXTS, *LABELS)
_LONGEST_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters


def reader(path: Path) -> Callable[[Path], Iterator[dict[str, Any]]]:
    """What reads a file, by how its name ends.

    Raises:
        ValueError: it ends in no way that is known.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a folder or a file {', '.join(READERS)}")
    return READERS[path.suffix]


def column(row: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of some names that a row has; None where it has none."""
    return next((name for name in names if name in row), None)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    return _table(path)


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    return _table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(path: Path, **form: Any) -> Iterator[dict[str, Any]]:
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, **form)
            _refuse_doubles(rows.fieldnames or (), path)
            for number, row in enumerate(rows, 2):
                yield _full(row, path, number)
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _refuse_doubles(header: Sequence[str], path: Path) -> None:
    for name in _READ:
        if header.count(name) > 1:
            raise ValueError(f"{path}: {header.count(name)} columns are called {name}; rename one")


def _full(row: dict[Any, Any], path: Path, number: int) -> dict[str, Any]:
    # DictReader puts what is too much under None, and None where there is too little.
    if None in row or None in row.values():
        raise ValueError(f"{path}: row {number} has another number of columns than the header")
    label = column(row, LABELS)
    if label is not None and not row[label].strip():
        raise ValueError(
            f"{path}: row {number}: {label} is empty; give every row one, or remove the row"
        )
    return row


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number}: expected an object, got {line[:40]!r}")
            yield {key: _word(row[key], key, path, number) for key in row}


def _word(value: Any, key: str, path: Path, number: int) -> Any:
    if key not in _READ:
        return value
    empty = key in LABELS and not str(value).strip()
    wrong = isinstance(value, list | dict) or (key in _TEXTS and value != str(value))
    if value is None or empty or wrong:
        expected = "a text" if key in _TEXTS else "a text or a number"
        raise ValueError(f"{path}: line {number}: {key}: expected {expected}, got {value!r}")
    # 1 and 1.0 are one class.
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if line.strip():
                yield {"text": line.strip()}


TABLES: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
}
READERS = {**TABLES, ".txt": _lines}
