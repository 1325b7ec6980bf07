"""Which configuration a layer runs with whose tiles are expanded, unstructured or N:M.

All of them are of a closed set, ``offered``, so that every one is compiled ahead of time
(cases.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as pairs
from pathlib import Path

from ..defaults import MULTIPROCESSORS, PRODUCTS, SIZES, Key, Table, rounded
from ..linear.tiles import Config

# Tiles low in tokens, where weights stream, up to the lowest that Hopper's own tensor-core
# instructions take. Higher ones would expand no fewer weights a product than dense tiles read.
TILES = {
    "int8": (
        Config(16, 64, 128),
        Config(16, 64, 256),
        Config(32, 64, 128),
        Config(64, 64, 128, num_warps=8),
    ),
    "half": (
        Config(16, 64, 64, num_warps=8),
        Config(16, 64, 128),
        Config(32, 64, 64),
        Config(64, 64, 64),
    ),
    "fp32": (Config(16, 64, 32), Config(32, 64, 32)),
}
SPLITS = (1, 2, 4)


def offered(product: str) -> Iterator[Config]:
    """Every configuration that may run.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
    """
    for config, splits in pairs(TILES[product], SPLITS):
        yield config._replace(split_k=splits)


def predicted(
    product: str, tokens: int, out_features: int, in_features: int, processors: int
) -> list[Config]:
    """By the rule: the highest tile that so many tokens fill first, split to fill the GPU.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        processors: multiprocessors of the GPU.
    """
    height = max((c.block_m for c in TILES[product] if c.block_m <= tokens), default=16)
    found = []
    for config in sorted(TILES[product], key=lambda config: abs(config.block_m - height)):
        tiles = -(-tokens // config.block_m) * -(-out_features // config.block_n)
        steps = -(-in_features // config.block_k)
        fitting = [s for s in SPLITS if s * tiles <= processors and 2 * s <= steps]
        splits = max(fitting, default=1)
        found += [config._replace(split_k=count) for count in dict.fromkeys((splits, 1))]
    return found


def choices(
    table: Table,
    pattern: Key,
    product: str,
    tokens: int,
    out_features: int,
    in_features: int,
    capability: int,
    processors: int,
) -> list[Config]:
    """What is worth measuring, the default first.

    Args:
        table: the family's.
        pattern: what its keys begin with.
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: of the GPU, 80 for sm_80.
        processors: its multiprocessors.
    """
    sizes = (out_features, in_features)
    tabled = table.get((*pattern, product, rounded(tokens), *sizes), capability, processors)
    found = [] if tabled is None else [tabled]
    return list(dict.fromkeys([*found, *predicted(product, tokens, *sizes, processors)]))


def predict(capability: int) -> Iterator[tuple[Key, Config]]:
    """The rule's best for every entry of a table."""
    for product, (tokens, outputs, inputs) in pairs(PRODUCTS, SIZES):
        sizes = (product, tokens, outputs, inputs)
        yield sizes, predicted(*sizes, MULTIPROCESSORS[capability])[0]


TABLE = Table(
    "unstructured",
    Path(__file__).parent / "tuned",
    ("product", "tokens", "out", "in"),
    Config,
    predict,
)
