"""Configurations that are shipped as data; each that may run is compiled ahead of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import product as pairs
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.kernels import defaults
from sparse_runtime.kernels.ahead_of_time import read_table
from sparse_runtime.kernels.attention import cases as attention_cases
from sparse_runtime.kernels.attention import schedule
from sparse_runtime.kernels.block import cases as block_cases
from sparse_runtime.kernels.block import configs as block_configs
from sparse_runtime.kernels.block.layout import BlockTiles, pack
from sparse_runtime.kernels.defaults import LAYERS, PRODUCTS, TABLED, TOKENS, Table, tables
from sparse_runtime.kernels.linear import cases as linear_cases
from sparse_runtime.kernels.linear import configs as linear_configs
from sparse_runtime.kernels.nm.cases import PATTERNS, code_of
from sparse_runtime.kernels.nm.configs import TABLE as NM_TABLE
from sparse_runtime.kernels.unstructured import cases as expanding_cases
from sparse_runtime.kernels.unstructured.configs import TABLE as UNSTRUCTURED_TABLE
from sparse_runtime.ops.cuda.choosing import REGIMES
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.machine import H100, Machine
from sparse_runtime.ops.cuda.problem import Problem

A100 = Machine("A100", 80, 108, 40 << 20, 2.0e12, {"half": 312e12, "int8": 624e12, "fp32": 20e12})
MACHINES = {80: A100, 90: H100}
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ODD_LAYERS = ((100, 52), (1536, 640), (5120, 1280), (30522, 768))
"""Widths that no table has."""


def dtypes_of(product: str) -> tuple[str, ...]:
    return ("bf16", "fp16") if product == "half" else (product,)


@pytest.fixture(scope="module")
def compiled(checkout_root: Path) -> set[tuple[str, int]]:
    """What the committed table has: names without what follows tile and schedule, capabilities."""
    rows = read_table((checkout_root / "docs/kernels/triton_compiled.md").read_text())
    ends = {"linear dense": ": ffn_in", "linear": ", 768 inputs", "block": ", GELU"}
    ends["attention"] = " symmetric"
    names: set[tuple[str, int]] = set()
    for row in rows:
        for family, end in ends.items():
            name, found, _ = row.case.partition(end)
            if row.case.startswith(family) and found:
                names.add((name, row.capability))
    return names


@pytest.mark.parametrize("capability", TABLED)
@pytest.mark.parametrize("table", tables(), ids=lambda table: table.family)
def test_shipped_tables_are_what_the_rules_predict(table: Table, capability: int) -> None:
    stored = json.loads(table.path(capability).read_text())
    assert stored["family"] == table.family
    assert tuple(stored["config"]) == table.config._fields
    # After a change of the rules: python -m sparse_runtime.kernels.defaults
    assert stored["entries"] == table.entries(capability)
    assert len(table.read(capability)) == len(stored["entries"]) > 0
    for entry in stored["entries"]:
        measured = entry["source"] == "measured"
        assert measured or (entry["source"] == "predicted" and entry["microseconds"] is None)


def test_a_measured_entry_is_kept_and_taken(tmp_path: Path) -> None:
    def predict(capability: int) -> Iterator[tuple[tuple[int], block_configs.BlockConfig]]:
        yield from (((n,), block_configs.BlockConfig(16 * n)) for n in (1, 2))

    table = Table("some", tmp_path / "tuned", ("tokens",), block_configs.BlockConfig, predict)
    assert table.get((2,), 80) is None  # no file
    table.write(80)
    path = table.path(80)
    text = path.read_text().replace(
        '"tokens": 2, "config": [32, false, 4, 3, 8], "microseconds": null, "source": "predicted"',
        '"tokens": 2, "config": [64, true, 8, 2, 1], "microseconds": 7.5, "source": "measured"',
    )
    path.write_text(text)
    table.write(80)
    assert path.read_text() == text
    defaults._read.cache_clear()
    assert table.get((2,), 80) == block_configs.BlockConfig(64, True, 8, 2, 1)
    assert table.get((1,), 80, 108) == block_configs.BlockConfig(16)
    assert table.get((1,), 80, 56) is None  # half of an A100


@pytest.mark.parametrize("capability", TABLED)
def test_every_dense_configuration_is_compiled(
    capability: int, compiled: set[tuple[str, int]]
) -> None:
    (family,) = (family for family in FAMILIES if family.name == "triton.dense")
    for product in PRODUCTS:
        shipped = linear_configs.TABLE.read(capability).items()
        wanted = {config for (name, *_), config in shipped if name == product}
        for (out, into), tokens in pairs((*LAYERS, *ODD_LAYERS), (*REGIMES, *TOKENS)):
            problem = Problem(dtypes_of(product)[0], out, into, "dense", 1.0)
            tried = family.configs(None, problem, tokens, MACHINES[capability])
            assert tried[0] == linear_configs.default_config(product, tokens, out, into, capability)
            wanted.update(tried)
        for dtype, config in pairs(dtypes_of(product), wanted):
            assert (linear_cases.name_of(dtype, config), capability) in compiled


@pytest.mark.parametrize("capability", TABLED)
@pytest.mark.parametrize("pattern", ["unstructured", *(f"{n}:{m}" for n, m in PATTERNS)])
def test_every_expanding_configuration_is_compiled(
    pattern: str, capability: int, compiled: set[tuple[str, int]]
) -> None:
    name = "triton.unstructured" if pattern == "unstructured" else "triton.nm"
    table = UNSTRUCTURED_TABLE if pattern == "unstructured" else NM_TABLE
    (family,) = (family for family in FAMILIES if family.name == name)
    for dtype in DTYPES:
        product = expanding_cases.product_of(dtype)
        wanted = {c for key, c in table.read(capability).items() if product in key}
        for (out, into), tokens in pairs((*LAYERS, *ODD_LAYERS), (*REGIMES, *TOKENS)):
            problem = Problem(dtype, out, into, pattern, 0.5)
            wanted.update(family.configs(None, problem, tokens, MACHINES[capability]))
        code = pattern if pattern == "unstructured" else same_code(pattern, dtype)
        for config in wanted:
            title = f"linear {code} {dtype} {expanding_cases.name_of(config)}"
            assert (title, capability) in compiled


def same_code(pattern: str, dtype: str) -> str:
    """The first pattern of the table whose code is this one's."""
    n, m = map(int, pattern.split(":"))
    size = DTYPES[dtype].itemsize
    first = next(p for p in PATTERNS if code_of(*p, size) == code_of(n, m, size))
    return f"{first[0]}:{first[1]}"


def test_every_pattern_has_the_code_of_one_that_is_compiled() -> None:
    for m, dtype in pairs((2, 4, 8, 16), DTYPES):
        assert all(same_code(f"{n}:{m}", dtype) for n in range(1, m))


@cache
def blocks(block: int, dtype: str, shape: tuple[int, int], percent: int) -> BlockTiles:
    """So many of each hundred blocks, at random places."""
    rows, columns = -(-shape[0] // block), -(-shape[1] // block)
    generator = torch.Generator().manual_seed(rows + columns)
    mask = torch.rand(rows, columns, generator=generator) < percent / 100
    bits = torch.nn.functional.pad(mask, (0, -columns % 8)).view(rows, -1, 8).byte()
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    stored = torch.ones(int(mask.sum()), block * block, dtype=DTYPES[dtype])
    return pack(stored, (bits * weights).sum(-1).byte(), shape, (block, block))


@pytest.mark.parametrize("capability", TABLED)
@pytest.mark.parametrize("block", block_configs.SQUARES)
def test_every_block_configuration_is_compiled(
    block: int, capability: int, compiled: set[tuple[str, int]]
) -> None:
    table = block_configs.TABLE.read(capability)
    (family,) = (family for family in FAMILIES if family.name == "triton.block")
    layers = ((1152, 384), (768, 768), (768, 3072), (4096, 1024), (640, 5000))
    for dtype in DTYPES:
        product = expanding_cases.product_of(dtype)
        wanted = {
            config
            for (name, square, *_), config in table.items()
            if (name, square) == (product, f"{block}x{block}")
        }
        problem = Problem(dtype, 1, 1, f"block:{block}x{block}", 0.1)  # the packed weight decides
        for layer, percent, tokens in pairs(layers, (10, 40), (1, 100, 1024, 4096, 16384)):
            weight = blocks(block, dtype, layer, percent)
            tried = family.configs(weight, problem, tokens, MACHINES[capability])
            assert tried[0] == block_configs.default_config(weight, tokens, capability)
            wanted.update(tried)
        for config in wanted:
            title = block_cases.name_of((block, block), dtype, config)
            assert (title, capability) in compiled


@pytest.mark.parametrize("capability", TABLED)
def test_every_attention_configuration_is_compiled(
    capability: int, compiled: set[tuple[str, int]]
) -> None:
    wanted: set[tuple[str, int, Any]] = set()
    for (product, head, *_), config in schedule.TABLE.read(capability).items():
        wanted |= {(dtype, head, config) for dtype in dtypes_of(product)}
    gpu = (capability, MACHINES[capability].processors)
    for dtype in ("bf16", "fp16", "fp32"):
        for head, heads in schedule.MODELS:
            for longest, sequences in pairs((1, 30, 128, 200, 384, 512), (1, 3, 32, 100)):
                sizes = (head, longest, sequences, heads, DTYPES[dtype])
                wanted.add((dtype, head, schedule.default_config(*sizes, *gpu)))
    for dtype, head, config in wanted:
        assert (attention_cases.name_of(dtype, head, config), capability) in compiled


@pytest.mark.parametrize("capability", TABLED)
def test_shipped_tiles_of_attention_hold_their_sequences(capability: int) -> None:
    for (_, _, _, longest, _), config in schedule.TABLE.read(capability).items():
        assert not config.single or longest <= config.block_k
