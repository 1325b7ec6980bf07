"""Which configuration a linear layer runs with where its own machine has measured none.

``tuned/sm_80.json`` and ``sm_90.json`` hold one for each linear layer of MiniLM, DistilBERT, BERT
base and large, each kind of product and 16 to 16,384 tokens. An entry says where it comes from:
"measured", with its microseconds and the device, or "predicted" (rules.py), with null. Other shapes
follow the rules.

    python -m sparse_runtime.kernels.linear.configs   # predict anew what was not measured
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product as pairs
from pathlib import Path
from typing import Any

from .rules import ITEM_BYTES, MACHINES, candidates
from .tiles import Config, Workspace, row_blocks, workspace_needs

__all__ = ["Config", "Workspace", "default_config", "row_blocks", "table_of", "workspace_needs"]

TABLES = Path(__file__).parent / "tuned"
TOKENS = tuple(2**power for power in range(4, 15))
"""Numbers of tokens are rounded up to one of these, for each configuration is compiled once."""

WIDTHS = ((384, 1536), (768, 3072), (1024, 4096))
"""Hidden and intermediate sizes of MiniLM, of DistilBERT and BERT base, and of BERT large."""

Key = tuple[str, int, int, int]


def default_config(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> Config:
    """The configuration of the dense family for a product of this size.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: of the GPU, 80 for sm_80; those without a table take the nearest below.
    """
    rounded = next((count for count in TOKENS if count >= tokens), TOKENS[-1])
    return _default(product, rounded, out_features, in_features, capability)


@cache
def _default(product: str, tokens: int, outputs: int, inputs: int, capability: int) -> Config:
    table = table_of(max((known for known in MACHINES if known <= capability), default=80))
    found = table.get((product, tokens, outputs, inputs))
    return found or candidates(product, tokens, outputs, inputs, capability)[0]


@cache
def table_of(capability: int) -> dict[Key, Config]:
    """The shipped table of sm_80 or sm_90, by product, tokens, outputs and inputs."""
    return {_key(entry): Config(*entry["config"]) for entry in _read(capability)}


def predict(capability: int) -> list[dict[str, Any]]:
    """The table's entries: those that were measured, and predictions for the others."""
    measured = {_key(e): e for e in _read(capability) if e["source"] != "predicted"}
    entries = []
    for product, (hidden, inner) in pairs(ITEM_BYTES, WIDTHS):
        shapes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
        for (outputs, inputs), tokens in pairs(shapes, TOKENS):
            key = (product, tokens, outputs, inputs)
            config = candidates(*key, capability)[0]
            predicted = {"config": list(config), "microseconds": None, "source": "predicted"}
            name = dict(zip(("product", "tokens", "out", "in"), key, strict=True))
            entries.append(measured.get(key, {**name, **predicted}))
    return entries


def _key(entry: dict[str, Any]) -> Key:
    return entry["product"], entry["tokens"], entry["out"], entry["in"]


def _read(capability: int) -> list[dict[str, Any]]:
    path = TABLES / f"sm_{capability}.json"
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return entries


def _write(capability: int) -> None:
    lines = ",\n".join(json.dumps(entry) for entry in predict(capability))
    fields = json.dumps(Config._fields)
    text = f'{{"family": "dense", "config": {fields}, "entries": [\n{lines}\n]}}\n'
    (TABLES / f"sm_{capability}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for known in MACHINES:
        _write(known)
