"""Which configuration an N:M layer runs with: as an unstructured one, and a table for 2:4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..defaults import Key, Table
from ..linear.tiles import Config
from ..unstructured import configs as unstructured


def predict(capability: int) -> Iterator[tuple[Key, Config]]:
    """What the table of unstructured layers says, for 2:4."""
    for key, config in unstructured.predict(capability):
        yield ("2:4", *key), config


TABLE = Table(
    "nm",
    Path(__file__).parent / "tuned",
    ("structure", "product", "tokens", "out", "in"),
    Config,
    predict,
)
