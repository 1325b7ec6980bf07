"""Which configuration a dense linear layer runs with, and which are worth measuring.

All of them are of a closed set, ``offered``, so that every one is compiled ahead of time
(cases.py): the shipped table (../defaults.py), and what the rules (rules.py) find best for the
linear layers of MiniLM, DistilBERT, BERT base and large.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product as pairs
from pathlib import Path

from ..defaults import PRODUCTS, SIZES, Key, Table, rounded
from .rules import candidates, known
from .tiles import Config, Workspace, row_blocks, workspace_needs

__all__ = ["TABLE", "Config", "Workspace", "default_config", "row_blocks", "workspace_needs"]

MOST_CHOICES = 8
"""Configurations that are measured for a product and a number of tokens."""


def predict(capability: int) -> Iterator[tuple[Key, Config]]:
    """The rules' best for every entry of the table."""
    for product, (tokens, outputs, inputs) in pairs(PRODUCTS, SIZES):
        sizes = (product, tokens, outputs, inputs)
        yield sizes, candidates(*sizes, capability)[0]


TABLE = Table(
    "dense",
    Path(__file__).parent / "tuned",
    ("product", "tokens", "out", "in"),
    Config,
    predict,
)


@cache
def offered(product: str, capability: int) -> dict[Config, tuple[int, int, int]]:
    """Every configuration that may run, with tokens, outputs and inputs that it may run for.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        capability: a key of ``MACHINES`` (rules.py).
    """
    found: dict[Config, tuple[int, int, int]] = {}
    for (name, tokens, outputs, inputs), config in TABLE.read(capability).items():
        if name == product:
            found.setdefault(config, (tokens, outputs, inputs))
    for tokens, outputs, inputs in SIZES:
        for config in candidates(product, tokens, outputs, inputs, capability)[:MOST_CHOICES]:
            found.setdefault(config, (tokens, outputs, inputs))
    return {config: sizes for config, sizes in found.items() if not _spills(product, config)}


def _spills(product: str, config: Config) -> bool:
    """Whether a split's end takes more registers than the compiler gives it."""
    tile = (config.block_m, config.block_n)
    if product == "int8":
        return config.split_k > 1 and tile == (128, 256)
    return product == "half" and config.split_k == 8 and tile == (32, 32)


@cache
def choices(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> tuple[Config, ...]:
    """What is worth measuring, the default first.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: of the GPU, 80 for sm_80; those that the rules do not know take the nearest
            below.
    """
    capability = known(capability)
    depths: dict[Config, list[int]] = {}
    for config in offered(product, capability):
        depths.setdefault(config._replace(num_stages=0), []).append(config.num_stages)
    found = []
    tabled = TABLE.get((product, rounded(tokens), out_features, in_features), capability)
    if tabled is not None:
        found.append(tabled)
    for config in candidates(product, tokens, out_features, in_features, capability):
        depth = depths.get(config._replace(num_stages=0))
        if depth:
            nearest = min(depth, key=lambda stages: abs(stages - config.num_stages))
            found.append(config._replace(num_stages=nearest))
    return tuple(dict.fromkeys(found))[:MOST_CHOICES]


def default_config(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> Config:
    """The first of :func:`choices` for the number of tokens that this one is rounded up to."""
    return choices(product, rounded(tokens), out_features, in_features, capability)[0]
