"""Labelled texts, sentence pairs with scores, and plain texts, from files people have.

A data folder holds ``train`` and, where there are, ``dev`` and ``test``, as csv, tsv or jsonl, and
may hold ``texts.txt`` for what needs no labels. A single file is the training part.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .data_files import Columns, found_files, read_columns

_UNLABELLED = "texts.txt"


@dataclass(frozen=True)
class Part:
    """Some rows.

    Attributes:
        texts: one a row.
        seconds: the second text of each pair; None for single texts.
        labels: int class numbers, or float scores; None for plain texts.
    """

    texts: tuple[str, ...]
    seconds: tuple[str, ...] | None = None
    labels: tuple[int, ...] | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, values in (("seconds", self.seconds), ("labels", self.labels)):
            if values is not None and len(values) != len(self.texts):
                raise ValueError(
                    f"data: {len(self.texts)} texts but {len(values)} {name}; expected as many"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, indices: Sequence[int]) -> Part:
        """Some of the rows, in the order given."""
        return Part(
            tuple(self.texts[i] for i in indices),
            None if self.seconds is None else tuple(self.seconds[i] for i in indices),
            None if self.labels is None else tuple(self.labels[i] for i in indices),
        )

    def plain(self) -> Part:
        """All texts, those of pairs too, each once, without labels."""
        return Part(tuple(dict.fromkeys((*self.texts, *(self.seconds or ())))))


@dataclass(frozen=True)
class Data:
    """What a recipe is run on.

    Attributes:
        train: to learn from.
        dev: to choose by; None where there is none.
        test: to report; None where there is none.
        label_names: of the classes, by number; None for scores and plain texts.
        unlabelled: for masked LM and embedding distillation; None takes the training texts.
        columns: of the training file, for errors.
    """

    train: Part
    dev: Part | None = None
    test: Part | None = None
    label_names: tuple[str, ...] | None = None
    unlabelled: Part | None = None
    columns: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def plain(self) -> Part:
        """Texts for what needs no labels."""
        return self.unlabelled if self.unlabelled is not None else self.train.plain()

    def fingerprint(self) -> str:
        """A digest of every text and label."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def load_data(path: str | Path, *, dev: float = 0.0, test: float = 0.0) -> Data:
    """Read a file or a folder.

    Columns are ``text`` (or ``sentence``) and ``label`` (or ``category``), or ``sentence1``,
    ``sentence2`` and ``score``; others are ignored. tsv has no quoting. A .txt file holds one text
    a line.

    Args:
        path: the file or folder.
        dev: share of the training part to set aside where there is no dev part.
        test: the same for the test part.

    Raises:
        ValueError: no training part, missing columns, a labelled training part with others of
            other columns, labels in these alone, a label in dev or test that training lacks, or a
            share for a part that is there.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"data (--data) {path}: there is no such file or folder; give a folder with a train "
            f"file or {_UNLABELLED}, or one such file"
        )
    found = found_files(path)
    raw = {name: read_columns(file) for name, file in found.items()}
    plain = path / _UNLABELLED
    unlabelled = read_columns(plain) if path.is_dir() and plain.is_file() else None
    train = raw.pop("train", unlabelled)
    if train is None:
        raise _nothing_to_train_on(path)
    names = _label_names(train)
    for name, part in raw.items():
        _check_alike(train, part, f"{path}: {name}")
    parts = {name: _numbered(part, names, f"{path}: {name}") for name, part in raw.items()}
    data = Data(
        train=_numbered(train, names, f"{path}: train"),
        dev=parts.get("dev"),
        test=parts.get("test"),
        label_names=names,
        unlabelled=None if unlabelled is None else Part(unlabelled.texts),
        columns=train.columns,
    )
    return set_aside(data, dev=dev, test=test)


def load_texts(path: str | Path) -> list[str]:
    """The texts of a file, or of a folder's texts.txt or training part: each once, no labels.

    Raises:
        ValueError: there are none, or columns are missing.
        OSError: the file cannot be read.
    """
    path = Path(path).expanduser()
    plain = path / _UNLABELLED
    file = plain if plain.is_file() else found_files(path).get("train")
    if file is None:
        raise _nothing_to_train_on(path)
    raw = read_columns(file)
    return list(Part(raw.texts, raw.seconds).plain().texts)


def set_aside(data: Data, *, dev: float = 0.0, test: float = 0.0, seed: int = 0) -> Data:
    """Take rows out of the training part for dev and test.

    The choice depends on ``seed`` and the number of rows alone, never on the seed of a run.

    Raises:
        ValueError: a share that is not in [0, 1), or of a part that is there already; or shares
            that leave a part without rows.
    """
    for name, share in (("dev", dev), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} (--{name}) {share}: expected a share from 0 to below 1")
        if share and getattr(data, name) is not None:
            raise ValueError(f"{name} {share}: the data has a {name} part; leave the share out")
    if dev + test >= 1:
        raise ValueError(
            f"dev (--dev) {dev} and test (--test) {test}: together {dev + test:g} of the rows; "
            "expected less than 1, the rest is trained on"
        )
    if not dev and not test:
        return data
    order = list(range(len(data.train)))
    random.Random(seed).shuffle(order)
    cut = round(test * len(order))
    end = cut + round(dev * len(order))
    for name, share, rows in (("dev", dev, end - cut), ("test", test, cut)):
        if share and not rows:
            raise ValueError(
                f"{name} (--{name}) {share}: is no row of {len(order)}; give a larger share, or "
                "more rows"
            )
    if end == len(order):
        raise ValueError(
            f"dev (--dev) {dev} and test (--test) {test}: leave none of {len(order)} rows to train "
            "on; give smaller shares, or more rows"
        )
    return replace(
        data,
        train=data.train.rows(sorted(order[end:])),
        dev=data.train.rows(sorted(order[cut:end])) if dev else data.dev,
        test=data.train.rows(sorted(order[:cut])) if test else data.test,
    )


def labelled_lines(path: str | Path, *, encoding: str = "utf-8") -> Part:
    """Lines "LABEL TEXT" with a whole number and one space between, as sentiment sets come.

    Raises:
        ValueError: a line is not of this form.
    """
    texts, labels = [], []
    # Split at \n alone: such files hold characters that other splitters take for line ends.
    for number, line in enumerate(Path(path).read_bytes().decode(encoding).split("\n"), 1):
        if not line:
            continue
        label, space, text = line.partition(" ")
        if not space or not label.isdecimal():
            raise ValueError(f"{path}: line {number}: expected 'LABEL TEXT', got {line[:40]!r}")
        texts.append(text.strip())
        labels.append(int(label))
    return Part(tuple(texts), labels=tuple(labels))


def _nothing_to_train_on(path: Path) -> ValueError:
    return ValueError(
        f"{path}: expected train.csv, train.tsv, train.jsonl or {_UNLABELLED}, found none"
    )


def _label_names(train: Columns) -> tuple[str, ...] | None:
    if train.labels is None or train.scores:
        return None
    names = set(train.labels)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _check_alike(train: Columns, part: Columns, where: str) -> None:
    """What is learnt from labels is measured by such labels, on texts or pairs like these."""
    if train.labels is not None and train.kind != part.kind:
        raise ValueError(f"{where}: expected {train.kind} as in the training part, got {part.kind}")


def _numbered(raw: Columns, names: tuple[str, ...] | None, where: str) -> Part:
    if raw.labels is None:
        return Part(raw.texts, raw.seconds)
    if raw.scores:
        try:
            scores = tuple(float(label) for label in raw.labels)
        except ValueError as error:
            raise ValueError(f"{where}: expected numbers in the column score: {error}") from None
        wrong = next((score for score in scores if not math.isfinite(score)), None)
        if wrong is not None:
            raise ValueError(f"{where}: expected finite numbers in the column score, got {wrong}")
        return Part(raw.texts, raw.seconds, scores)
    if names is None:
        # Plain texts to train on, and labels to report: they can only be scores.
        raise ValueError(f"{where}: has labels, but the training part has none")
    numbers = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(raw.labels) - numbers.keys())
    if unknown:
        raise ValueError(f"{where}: label {unknown[0]!r} does not occur in the training part")
    return Part(raw.texts, raw.seconds, tuple(numbers[label] for label in raw.labels))
