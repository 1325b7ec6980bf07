"""Configurations that kernels run with where a machine has measured none: shipped as data.

A family has a table for each of ``TABLED``, ``<family>/tuned/sm_80.json`` and ``sm_90.json``. An
entry says where it comes from: "measured", with its microseconds and the device, or "predicted" by
the family's rule, with null. What no table holds follows the rule.

    python -m sparse_runtime.kernels.defaults  # predict anew what was not measured
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from itertools import product as pairs
from pathlib import Path
from typing import Any, NamedTuple

TABLED = (80, 90)
MULTIPROCESSORS = {80: 108, 90: 132}
"""Of the GPUs that the tables are for: A100, and H100 SXM."""

PRODUCTS = ("int8", "half", "fp32")
"""Kinds of products; "half" is bf16 and fp16."""

TOKENS = tuple(2**power for power in range(4, 15))
"""Numbers of tokens are rounded up to one of these, for each configuration is compiled once."""

WIDTHS = ((384, 1536), (768, 3072), (1024, 4096))
"""Hidden and intermediate sizes of MiniLM, of DistilBERT and BERT base, and of BERT large."""

LAYERS = tuple(
    layer
    for hidden, inner in WIDTHS
    for layer in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
)
"""Outputs and inputs of their linear layers."""

SIZES = tuple((tokens, *layer) for layer in LAYERS for tokens in TOKENS)
"""Tokens, outputs and inputs that tables of linear layers hold."""

MODULES = (
    "attention.schedule",
    "block.configs",
    "linear.configs",
    "nm.configs",
    "unstructured.configs",
)
"""Those that have a ``TABLE``."""

Key = tuple[Any, ...]


class Table(NamedTuple):
    """The shipped configurations of one family.

    Attributes:
        family: its name.
        folder: holds the files.
        key: names of what an entry is for.
        config: type of its configurations, a named tuple.
        predict: capability -> keys, in the file's order, and what the family's rule says.
    """

    family: str
    folder: Path
    key: tuple[str, ...]
    config: Any
    predict: Callable[[int], Iterable[tuple[Key, Any]]]

    def path(self, capability: int) -> Path:
        """The file for one of ``TABLED``."""
        return self.folder / f"sm_{capability}.json"

    def get(self, key: Key, capability: int, processors: int | None = None) -> Any | None:
        """The configuration of an entry; None where there is none.

        Args:
            key: values of ``key``.
            capability: 80 for sm_80; without a file there are no entries.
            processors: multiprocessors of the GPU, where the rule counts them: with another number
                than the table is for, there are no entries.
        """
        if processors is not None and processors != MULTIPROCESSORS.get(capability):
            return None
        return self.read(capability).get(key)

    def read(self, capability: int) -> dict[Key, Any]:
        """All entries of a file."""
        return _read(self.path(capability), self.key, self.config)

    def entries(self, capability: int) -> list[dict[str, Any]]:
        """As :meth:`write` writes them: those that were measured, predictions for the others."""
        measured = {}
        if self.path(capability).exists():
            known = json.loads(self.path(capability).read_text(encoding="utf-8"))["entries"]
            measured = {_key(e, self.key): e for e in known if e["source"] != "predicted"}
        found = []
        for key, config in self.predict(capability):
            entry = dict(zip(self.key, key, strict=True))
            entry |= {"config": list(config), "microseconds": None, "source": "predicted"}
            found.append(measured.pop(key, entry))
        return [*found, *measured.values()]

    def write(self, capability: int) -> None:
        """Predict anew what was not measured."""
        lines = ",\n".join(json.dumps(entry) for entry in self.entries(capability))
        head = {"family": self.family, "config": self.config._fields}
        text = f'{json.dumps(head)[:-1]}, "entries": [\n{lines}\n]}}\n'
        self.folder.mkdir(exist_ok=True)
        self.path(capability).write_text(text, encoding="utf-8")


def rounded(tokens: int) -> int:
    """The number of tokens whose entry holds for so many."""
    return next((count for count in TOKENS if count >= tokens), TOKENS[-1])


def tables() -> list[Table]:
    """Of every family."""
    return [import_module(f"{__package__}.{name}").TABLE for name in MODULES]


@cache
def _read(path: Path, names: tuple[str, ...], config: Any) -> dict[Key, Any]:
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return {_key(entry, names): config(*entry["config"]) for entry in entries}


def _key(entry: dict[str, Any], names: tuple[str, ...]) -> Key:
    return tuple(entry[name] for name in names)


def main() -> None:
    """Write every file."""
    for table, capability in pairs(tables(), TABLED):
        table.write(capability)


if __name__ == "__main__":
    main()
