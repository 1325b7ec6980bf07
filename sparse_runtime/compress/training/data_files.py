"""Files of a data folder, and the columns of each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from .rows import FIRST, LABELS, SECOND, TABLES, column, reader

_PARTS = ("train", "dev", "test")
_OTHER_NAMES_OF_DEV = ("validation", "valid", "val", "eval")


@dataclass(frozen=True)
class Columns:
    """What a file says that is read.

    Attributes:
        texts: one a row.
        seconds: the second text of each pair; None for single texts.
        labels: as they are written; None where the file has none.
        scores: whether the labels are scores.
        columns: names of all that the file has.
    """

    texts: tuple[str, ...]
    seconds: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    scores: bool = False
    columns: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """In words."""
        texts = "texts" if self.seconds is None else "pairs of texts"
        labels = "scores" if self.scores else "labels"
        return f"{texts} without labels" if self.labels is None else f"{texts} with {labels}"


def found_files(path: Path) -> dict[str, Path]:
    """The file of each part that a folder has; a file by itself is the training part.

    Raises:
        ValueError: two files for one part, or a file of an unknown kind.
    """
    if not path.is_dir():
        reader(path)
        return {"train": path}
    found: dict[str, Path] = {}
    for name in _PARTS:
        files = [path / f"{name}{suffix}" for suffix in TABLES]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            raise ValueError(f"{path}: expected one {name} file, got {[f.name for f in files]}")
        if files:
            found[name] = files[0]
    if "dev" not in found:
        _hint_at_dev(path)
    return found


def _hint_at_dev(path: Path) -> None:
    for file in sorted(path.iterdir()):
        if file.stem in _OTHER_NAMES_OF_DEV and file.suffix in TABLES:
            warnings.warn(
                f"{file}: is not read; the part to choose by is called dev{file.suffix}",
                stacklevel=2,
            )


def read_columns(path: Path) -> Columns:
    """The texts and labels of a file.

    Raises:
        ValueError: there are no rows or no texts, or it is not UTF-8.
    """
    try:
        rows = list(reader(path)(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); convert the file first") from error
    if not rows:
        raise ValueError(f"{path}: expected rows, got none")
    first = column(rows[0], FIRST)
    second, label = column(rows[0], SECOND), column(rows[0], LABELS)
    if first is None:
        raise ValueError(
            f"{path}: expected a column {', '.join(FIRST)}; got {', '.join(map(str, rows[0]))}"
        )
    try:
        return Columns(
            tuple(str(row[first]) for row in rows),
            None if second is None else tuple(str(row[second]) for row in rows),
            None if label is None else tuple(str(row[label]) for row in rows),
            scores=label == "score",
            columns=tuple(map(str, rows[0])),
        )
    except KeyError as error:
        raise ValueError(f"{path}: a row lacks {error}; every row needs the same columns") from None
