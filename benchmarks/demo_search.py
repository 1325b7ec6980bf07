"""A semantic search small enough to judge by eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

Embed = Callable[[list[str]], NDArray[np.float32]]
"""Texts -> embeddings [texts, features] of length 1."""

DOCUMENTS = (
    "To return an item, print the label from your account page and hand the parcel in at any post "
    "office within 30 days.",
    "A forgotten password can be reset with the link on the sign-in page.",
    "The card is blocked after three wrong PINs; call the number on its back to unblock it.",
    "Sourdough needs no yeast from a packet: flour and water ferment by themselves in a few days.",
    "Boil potatoes in their skins and peel them while they are still warm.",
    "Glaciers grind the rock beneath them to a fine flour that colours lakes turquoise.",
    "A lunar eclipse happens when the Earth stands between the Sun and a full Moon.",
    "Volcanic ash clogs jet engines, so airspace around an eruption is closed.",
    "The night train to the mountains has sleeping cars and takes bicycles.",
    "Short walks after meals lower blood sugar.",
    "Stretching for ten minutes a day eases a stiff back.",
    "The quartet recorded the whole cycle in a village church without an audience.",
)

QUERIES = (
    "I can't log in to my account any more",
    "why does the moon sometimes turn dark red",
    "how do I send back shoes that do not fit",
)


def rank(embed: Embed, queries: Sequence[str] = QUERIES, top: int = 3) -> list[list[int]]:
    """For each query, the numbers of the nearest documents by cosine, best first."""
    scores = embed(list(queries)) @ embed(list(DOCUMENTS)).T
    return [[int(i) for i in np.argsort(-row, kind="stable")[:top]] for row in scores]


def search_table(embedders: dict[str, Embed]) -> tuple[Table, dict[str, int]]:
    """What every model finds.

    Args:
        embedders: model's name -> its embeddings; the first is the original.

    Returns:
        The table, and for each model how many queries have the original's first answer first.
    """
    found = {name: rank(embed) for name, embed in embedders.items()}
    table = Table(title="Semantic search over 12 documents: the top 3", title_justify="left")
    table.add_column("query", style="bold", ratio=1)
    for name in found:
        table.add_column(name, ratio=2)
    for number, query in enumerate(QUERIES):
        cells = [
            "\n".join(
                f"{place}. {_short(DOCUMENTS[i])}" for place, i in enumerate(ranks[number], 1)
            )
            for ranks in found.values()
        ]
        table.add_row(query, *cells, end_section=True)
    original = next(iter(found.values()))
    same = {
        name: sum(a[0] == b[0] for a, b in zip(ranks, original, strict=True))
        for name, ranks in found.items()
    }
    return table, same


def _short(text: str, limit: int = 44) -> str:
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"
