"""What is compiled ahead of time of the block-sparse linear layer: every tile, type and default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from ..ahead_of_time import CAPABILITIES, Case
from ..linear.configs import Workspace
from ..linear.operands import Epilogue, Quantized, Target
from .configs import BlockConfig, candidate_configs, default_config
from .layout import BlockTiles, pack

BLOCKS = [(16, 16), (32, 32), (64, 64), (128, 128), (64, 16), (16, 1), (32, 4), (24, 8), (64, 48)]
FEW_BLOCKS = [(16, 16), (64, 64), (128, 128), (16, 1)]
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS = {"few": 16, "some": 128, "many": 4096}


def _weight(block: tuple[int, int], dtype: torch.dtype) -> BlockTiles:
    """3072 x 768, every eighth block stored."""
    (r, c), shape = block, (3072, 768)
    columns = -(-shape[1] // c)
    bits = torch.full((shape[0] // r, -(-columns // 8)), 1, dtype=torch.uint8)
    return pack(torch.ones(int(bits.sum()), r * c, dtype=dtype), bits, shape, block)


def _call(
    block: tuple[int, int],
    dtype: torch.dtype,
    tokens: int,
    config: BlockConfig,
    scheme: str,
    residual: bool,
) -> None:
    from .block_triton import block_linear

    weight = _weight(block, dtype)
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
    """Default configurations of all blocks and types; others and all results for 64 x 64."""
    cases: dict[str, Case] = {}
    for capability in CAPABILITIES:
        for case in _cases(capability):
            known = cases.get(case.name, case).capabilities
            cases[case.name] = replace(case, capabilities=tuple({*known, capability}))
    yield from cases.values()


def _cases(capability: int) -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        for block in BLOCKS if name in ("int8", "bf16") else FEW_BLOCKS:
            for amount, tokens in TOKENS.items():
                config = default_config(_weight(block, dtype), tokens, capability)
                scheme = "symmetric" if name == "int8" else "none"
                yield _case(block, name, amount, config, scheme, capability)
    for name in ("int8", "bf16"):
        for block in ((64, 64), (128, 128)):
            weight = _weight(block, DTYPES[name])
            default, *others = candidate_configs(weight, TOKENS["many"], capability)
            for scheme in ("none", "static", "full_range", "asymmetric"):
                yield _case(block, name, "many", default, scheme, capability, residual=True)
            for config in others:
                yield _case(block, name, "many", config, "none", capability, residual=True)
            few = default_config(weight, TOKENS["few"], capability)._replace(parts=True)
            yield _case(block, name, "few", few, "none", capability, residual=True)


def _case(
    block: tuple[int, int],
    name: str,
    amount: str,
    config: BlockConfig,
    scheme: str,
    capability: int,
    residual: bool = False,
) -> Case:
    tile = f"{config.block_m} tokens, {config.num_warps} warps, {config.num_stages} stages"
    title = f"block {block[0]}x{block[1]} {name}, {amount}: {tile}"
    title += (", parts" if config.parts else "") + (", residual" if residual else ", GELU")
    title += "" if scheme == "none" else f", {scheme}"
    call = partial(_call, block, DTYPES[name], TOKENS[amount], config, scheme, residual)
    return Case(title, call, tensor_cores=name != "fp32", capabilities=(capability,))
