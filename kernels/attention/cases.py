"""What of attention is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product as pairs

import torch

from ..ahead_of_time import CAPABILITIES, Case
from ..defaults import MULTIPROCESSORS
from ..linear.operands import SCHEMES, Target
from .schedule import TABLE, Config, default_config, predicted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_HEADS = 12
_BATCHES = (  # sequences and the longest: single tiles of 16 to 128 keys, then loops
    (1, 16),
    (8, 16),
    (1, 32),
    (8, 32),
    (1, 64),
    (8, 64),
    (1, 128),
    (4, 128),
    (32, 128),
    (1, 256),
    (1, 512),
    (2, 512),
    (32, 384),
)
_HEAD_SIZES = (32, 64, 128, 20, 256)  # MiniLM; BERT; large heads; padded columns; the most


def _call(dtype: torch.dtype, head_size: int, config: Config, scheme: str, bias: bool) -> None:
    from .attention_triton import attention

    tokens, features, blocks = 256, _HEADS * head_size, 8
    rows = partial(torch.empty, tokens, dtype=torch.int32)
    target = Target(
        floats=torch.empty(tokens, features, dtype=dtype),
        floats_stride=features,
        q=None if scheme == "none" else torch.empty(tokens, features, dtype=torch.int8),
        q_stride=features,
        scale=torch.empty(1 if scheme == "static" else tokens),
        zero=rows() if scheme == "asymmetric" else None,
        ranges=torch.empty(2, tokens, dtype=torch.int32),
        counters=torch.empty(blocks, dtype=torch.int32),
    )
    attention(
        torch.empty(tokens, 3 * features, dtype=dtype),
        torch.empty(blocks, 3, dtype=torch.int32),
        _HEADS,
        head_size**-0.5,
        torch.empty(_HEADS, 512, 512, dtype=dtype) if bias else None,
        torch.empty(tokens, dtype=torch.int64) if bias else None,
        target,
        scheme,
        config,
    )


def compile_cases() -> Iterator[Case]:
    """Every configuration for heads of these sizes; other schemes and a bias on some."""
    found: dict[str, Case] = {}
    for capability in CAPABILITIES:
        for case in _cases(capability):
            known = found.get(case.name, case).capabilities
            found[case.name] = replace(case, capabilities=tuple({*known, capability}))
    yield from found.values()


def _cases(capability: int) -> Iterator[Case]:
    for dtype, head_size in pairs(DTYPES, _HEAD_SIZES):
        for config in sorted(offered(dtype, head_size, capability)):
            yield _case(dtype, head_size, config, "symmetric", capability)
    for batch in ((1, 128), (32, 128), (32, 384)):
        half = default_config(64, batch[1], batch[0], _HEADS, torch.bfloat16, capability)
        small = default_config(32, batch[1], batch[0], _HEADS, torch.bfloat16, capability)
        for scheme in SCHEMES:
            yield _case("bf16", 64, half, scheme, capability)
        yield _case("fp16", 64, half, "asymmetric", capability)
        yield _case("bf16", 64, half, "symmetric", capability, bias=True)
        yield _case("bf16", 32, small, "none", capability)
    single = default_config(64, 128, 32, _HEADS, torch.float32, capability)
    for scheme in SCHEMES:
        yield _case("fp32", 64, single, scheme, capability)
    yield _case("fp32", 64, single, "symmetric", capability, bias=True)


def offered(dtype: str, head_size: int, capability: int) -> set[Config]:
    """Every configuration that heads of a size run with: shipped ones, and those of the rule."""
    product = "fp32" if dtype == "fp32" else "half"
    found = {
        config
        for (name, head, *_), config in TABLE.read(capability).items()
        if (name, head) == (product, head_size)
    }
    for (sequences, longest), heads in pairs(_BATCHES, (_HEADS, 16)):
        gpu = (capability, MULTIPROCESSORS[capability])
        found.add(predicted(product, head_size, longest, heads * sequences, *gpu))
    return found


def _case(
    dtype: str, head_size: int, config: Config, scheme: str, capability: int, bias: bool = False
) -> Case:
    call = partial(_call, DTYPES[dtype], head_size, config, scheme, bias)
    name = f"{name_of(dtype, head_size, config)} {scheme}{' bias' if bias else ''}"
    return Case(name, call, dtype != "fp32", (capability,))


def name_of(dtype: str, head_size: int, config: Config) -> str:
    """A type and a configuration in a case's name."""
    tile = f"q{config.block_q} k{config.block_k} w{config.num_warps} s{config.num_stages}"
    return f"attention {dtype} head {head_size} {tile}{' single' if config.single else ''}"
