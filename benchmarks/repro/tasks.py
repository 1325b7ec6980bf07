"""The data of the suite: which rows are trained on, chosen by, and reported.

banking77 comes with a test part; a tenth of its training part is set aside to choose by. mr has no
parts: a tenth each is set aside for dev and test. The rows set aside never depend on a run's seed.
stsb_open has scores and is read without them while training: sentences alone are distilled on.
"""

from __future__ import annotations

import random
from dataclasses import replace

from sparse_runtime.benchmarks.sentences import BUILT_IN, data_folder
from sparse_runtime.compress.training.data import Data, Part, labelled_lines, load_data, set_aside

TASKS = ("banking77", "mr", "stsb_open")
TINY = "tiny"
METRICS = {"banking77": "accuracy", "mr": "accuracy", "stsb_open": "spearman", TINY: "accuracy"}
CALIBRATION_ROWS = 512


def load_task(name: str) -> Data:
    """Rows of one task.

    Args:
        name: one of ``TASKS``, or "tiny" for the smoke mode, which needs no files.

    Raises:
        ValueError: there is no such task, or its files are not there.
    """
    loaders = {"banking77": _banking77, "mr": _mr, "stsb_open": _stsb_open, TINY: _tiny}
    if name not in loaders:
        raise ValueError(f"task {name!r}: expected one of {', '.join(loaders)}")
    return loaders[name]()


def calibration_texts(data: Data, count: int = CALIBRATION_ROWS, seed: int = 0) -> list[str]:
    """Training texts without labels, for one-shot methods."""
    texts = list(data.plain.texts)
    random.Random(seed).shuffle(texts)
    return texts[:count]


def _banking77() -> Data:
    return set_aside(load_data(data_folder() / "banking77"), dev=0.1)


def _mr() -> Data:
    rows = labelled_lines(data_folder() / "mr" / "rt-polarity.all", encoding="iso-8859-1")
    return set_aside(Data(rows, label_names=("0", "1")), dev=0.1, test=0.1)


def _stsb_open() -> Data:
    data = load_data(data_folder() / "stsb_open")
    # Sentences of the other tasks as well: 5,000 short ones alone are learnt by heart.
    others = [text for name in ("banking77", "mr") for text in load_task(name).train.texts]
    texts = dict.fromkeys((*data.train.plain().texts, *others))
    return replace(data, unlabelled=Part(tuple(texts)))


def _tiny() -> Data:
    """Pairs of sentences with a question among them, and without: easy for a tiny model."""
    texts = [
        f"{text} {BUILT_IN[(i + n) % len(BUILT_IN)]}"
        for n in range(1, 9)
        for i, text in enumerate(BUILT_IN)
    ]
    labels = tuple(int("?" in text) for text in texts)
    rows = Data(Part(tuple(texts), labels=labels), label_names=("statement", "question"))
    return set_aside(rows, dev=0.2, test=0.2)
