"""What is compiled ahead of time of the block-sparse linear layer (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product as pairs

import torch

from ..ahead_of_time import CAPABILITIES, Case
from ..linear.operands import Epilogue, Quantized, Target
from ..linear.tiles import Workspace
from .configs import SQUARES, BlockConfig, choices, default_config, offered
from .layout import BlockTiles, pack

OTHERS = [(64, 16), (16, 1), (32, 4), (24, 8), (64, 48)]
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS = (16, 128, 4096)


@cache
def _weight(block: tuple[int, int], dtype: torch.dtype) -> BlockTiles:
    """768 outputs, every eighth block stored; rows are long enough to be cut."""
    (r, c), shape = block, (768, 6144)
    columns = -(-shape[1] // c)
    bits = torch.full((shape[0] // r, -(-columns // 8)), 1, dtype=torch.uint8)
    weight = pack(torch.ones(int(bits.sum()), r * c, dtype=dtype), bits, shape, block)
    assert weight.slots, "cases of parts: expected rows that are cut"
    return weight


def _call(
    block: tuple[int, int],
    dtype: torch.dtype,
    config: BlockConfig,
    scheme: str,
    residual: bool,
) -> None:
    from .block_triton import block_linear

    weight, tokens = _weight(block, dtype), 16
    integers, outputs = dtype == torch.int8, weight.out_features
    floats = torch.empty(tokens, outputs, dtype=torch.bfloat16 if integers else dtype)
    counts, numbers = torch.empty(8, dtype=torch.int32), torch.empty(tokens)
    x = torch.empty(tokens, weight.in_features, dtype=dtype)
    epilogue = Epilogue(
        weight_scale=torch.empty(outputs) if integers else None,
        bias=torch.empty(outputs),
        residual=floats if residual else None,
        residual_stride=outputs,
    )
    target = Target(floats, outputs)
    if scheme != "none":
        q = torch.empty(tokens, outputs, dtype=torch.int8)
        target = Target(floats, outputs, q, outputs, numbers, None, -128, 127, counts, counts)
    block_linear(
        Quantized(x, weight.in_features, numbers, None, 1) if integers else x,
        weight,
        epilogue,
        None if residual else "gelu",
        target,
        scheme,
        config,
        Workspace(numbers if config.parts else None, counts),
    )


def compile_cases() -> Iterator[Case]:
    """Every configuration that may run, for square blocks, in every type; defaults of others."""
    cases: dict[str, Case] = {}
    for capability in CAPABILITIES:
        for case in _cases(capability):
            known = cases.get(case.name, case).capabilities
            cases[case.name] = replace(case, capabilities=tuple({*known, capability}))
    yield from cases.values()


def _cases(capability: int) -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        scheme = "symmetric" if name == "int8" else "none"
        for rows in SQUARES:
            product = "half" if name in ("bf16", "fp16") else name
            for config in sorted(offered(product, rows, capability)):
                yield _case((rows, rows), name, config, scheme, capability)
        for block in OTHERS:
            for tokens in TOKENS:
                config = default_config(_weight(block, dtype), tokens, capability)
                yield _case(block, name, config, scheme, capability)
    for name, block in pairs(("int8", "bf16"), ((64, 64), (128, 128))):
        few, many = (choices(_weight(block, DTYPES[name]), t, capability) for t in (16, 4096))
        for scheme in ("none", "static", "full_range", "asymmetric"):
            yield _case(block, name, many[0], scheme, capability, residual=True)
        for config in (*many[1:], few[0]._replace(parts=True)):
            yield _case(block, name, config, "none", capability, residual=True)


def _case(
    block: tuple[int, int],
    name: str,
    config: BlockConfig,
    scheme: str,
    capability: int,
    residual: bool = False,
) -> Case:
    title = f"{name_of(block, name, config)}, {'residual' if residual else 'GELU'}"
    title += "" if scheme == "none" else f", {scheme}"
    call = partial(_call, block, DTYPES[name], config, scheme, residual)
    return Case(title, call, tensor_cores=name != "fp32", capabilities=(capability,))


def name_of(block: tuple[int, int], dtype: str, config: BlockConfig) -> str:
    """A type and a configuration in a case's name."""
    tile = f"{config.block_m} tokens, {config.num_warps} warps, {config.num_stages} stages"
    parts = ", parts" if config.parts else ""
    return f"block {block[0]}x{block[1]} {dtype}: {tile}{parts}"
