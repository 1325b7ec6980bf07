"""Sentences to run: real ones from a data folder where there is one, else a built-in list.

The folder is named by SPARSE_RUNTIME_DATA, or is shared/data beside the checkout. It may hold
banking77/test.csv, mr/rt-polarity.all and stsb_open/{dev,test}.tsv in the forms those sets are
published in.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SPARSE_RUNTIME_DATA"


@dataclass(frozen=True)
class Sentences:
    """Sentences, and words that say where they are from."""

    texts: list[str]
    origin: str


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences with a similarity from people, and words that say where they are from."""

    texts: list[tuple[str, str]]
    scores: list[float]
    origin: str


def data_folder() -> Path:
    """Where data is looked for; it need not exist."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def sentences(count: int, seed: int = 0) -> Sentences:
    """``count`` sentences, in equal parts from each set that is there; the seed picks them.

    Without data the built-in list is repeated until there are enough.

    Raises:
        ValueError: ``count`` is below 1, or a file that is there cannot be read.
    """
    if count < 1:
        raise ValueError(f"sentences: expected a count from 1, got {count}")
    readers = {"banking77": _banking77, "mr": _mr, "stsb_open": _stsb_texts}
    found = {name: texts for name, read in readers.items() if (texts := list(read()))}
    generator = random.Random(seed)
    if not found:
        texts = [BUILT_IN[i % len(BUILT_IN)] for i in range(count)]
        return Sentences(texts, f"{len(BUILT_IN)} built-in sentences ({missing_data()})")
    for texts in found.values():
        generator.shuffle(texts)
    mixed = [found[name][i] for i in range(count) for name in found if i < len(found[name])]
    return Sentences(mixed[:count], f"sentences of {', '.join(found)}")


def similarity_pairs() -> Pairs | None:
    """Every pair of stsb_open's dev and test parts, or None where the set is not there."""
    rows = list(_stsb())
    if not rows:
        return None
    return Pairs(
        [(first, second) for _, first, second in rows],
        [score for score, _, _ in rows],
        "stsb_open, dev and test",
    )


def missing_data() -> str:
    """Why there are no sentences but the built-in ones, for a person to read."""
    return f"no data in {data_folder()}; set {VARIABLE} to a folder that has some"


def _banking77() -> Iterator[str]:
    path = data_folder() / "banking77" / "test.csv"
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            yield from (row["text"].strip() for row in csv.DictReader(file))


def _mr() -> Iterator[str]:
    path = data_folder() / "mr" / "rt-polarity.all"
    if path.is_file():
        # Some lines hold NEL, which str.splitlines would split at.
        for line in path.read_bytes().decode("iso-8859-1").split("\n"):
            _, _, text = line.partition(" ")
            if text.strip():
                yield text.strip()


def _stsb_texts() -> Iterator[str]:
    for _, first, second in _stsb():
        yield first
        yield second


def _stsb() -> Iterator[tuple[float, str, str]]:
    for part in ("dev", "test"):
        path = data_folder() / "stsb_open" / f"{part}.tsv"
        if path.is_file():
            header, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
            columns = header.split("\t")
            for line in lines:
                row = dict(zip(columns, line.split("\t"), strict=True))
                yield float(row["score"]), row["sentence1"], row["sentence2"]


BUILT_IN = (
    "The kettle is boiling.",
    "Where can I park near the station?",
    "She closed the shop early because of the snow.",
    "My order arrived with two plates broken.",
    "Cancel my subscription, please.",
    "The train to the coast leaves every twenty minutes on weekends.",
    "An old bridge crosses the river south of the village.",
    "Prices rose by three percent in the second quarter.",
    "I have been charged twice for the same ticket.",
    "A boy kicks a ball against a brick wall.",
    "The second act drags, but the ending makes up for it.",
    "Warm, funny and a little sad: one of the best films this year.",
    "It is two hours long and feels like five.",
    "Add the eggs one at a time and stir until the batter is smooth.",
    "The vaccine is given in two doses, three weeks apart.",
    "Bees find their way home by the position of the sun.",
    "How long does a transfer to another bank take?",
    "The museum is closed on Mondays.",
    "Two women are playing chess in the park.",
    "A man is reading a newspaper on a bench.",
    "The court rejected the appeal on Thursday.",
    "Scientists have found water ice in craters near the pole of the Moon.",
    "What does the warranty cover?",
    "The battery lasts about nine hours if the screen is dimmed.",
    "Our flight was delayed, so we missed the connection in Lisbon.",
    "He plays the violin in the city's youth orchestra.",
    "Strong winds brought down power lines across the island.",
    "The recipe needs more salt.",
    "This jacket keeps the rain out, but the zip broke after a month.",
    "A dog runs through shallow water with a stick in its mouth.",
    "The library lends tools as well as books.",
    "I forgot my password and no longer have access to my old phone.",
    "The parliament will vote on the budget next week.",
    "Roots take up water, and leaves give it off to the air.",
    "Nobody expected the smallest team in the league to win the cup.",
    "Please send the invoice to our new address, and quote the number that is printed on the top "
    "right of the delivery note.",
    "The actors do what they can with a script that never decides whether it wants to be a comedy "
    "or a thriller.",
    "When the harbour froze over in January, goods had to be carried by sledge from the ships to "
    "the warehouses, and prices in the town doubled within days.",
    "Yes.",
    "Is it open today?",
)
