"""Rows of csv, tsv, jsonl and txt files, a dict each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LABELS = ("label", "category", "score")
SECOND = ("text2", "sentence2")
FIRST = ("text", "sentence", "text1", "sentence1")
_TEXTS = (*FIRST, *SECOND)
_READ = (*_TEXTS, *LABELS)


def reader(path: Path) -> Callable[[Path], Iterator[dict[str, Any]]]:
    """What reads a file, by how its name ends.

    Raises:
        ValueError: it ends in no way that is known.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a folder or a file {', '.join(READERS)}")
    return READERS[path.suffix]


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            yield _full(row, path, number)


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(reader, 2):
            yield _full(row, path, number)


def _full(row: dict[Any, Any], path: Path, number: int) -> dict[str, Any]:
    # DictReader puts what is too much under None, and None where there is too little.
    if None in row or None in row.values():
        raise ValueError(f"{path}: row {number} has another number of columns than the header")
    return row


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
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
    if value is None or isinstance(value, list | dict) or (key in _TEXTS and value != str(value)):
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


READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".txt": _lines,
}
