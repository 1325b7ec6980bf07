"""What of attention is compiled ahead of time: every default configuration."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import CAPABILITIES, Case
from ..linear.operands import SCHEMES, Target
from .schedule import Config, default_config

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
    """Default configurations with a dynamic scheme; other types, schemes and a bias on some."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    seen: set[tuple[object, ...]] = set()
    for capability in CAPABILITIES:

        def case(
            dtype: torch.dtype,
            head_size: int,
            batch: tuple[int, int],
            scheme: str,
            bias: bool = False,
            capability: int = capability,
        ) -> Iterator[Case]:
            sequences, longest = batch
            config = default_config(head_size, longest, sequences, _HEADS, dtype, capability)
            key = (dtype, head_size, config, scheme, bias, capability)
            if key in seen:
                return
            seen.add(key)
            tile = f"q{config.block_q} k{config.block_k} w{config.num_warps} s{config.num_stages}"
            kind = str(dtype).removeprefix("torch.")
            name = (
                f"attention {kind} head {head_size} {tile}{' single' if config.single else ''}"
                f" {scheme}{' bias' if bias else ''} sm_{capability}"
            )
            call = partial(_call, dtype, head_size, config, scheme, bias)
            yield Case(name, call, dtype != fp32, (capability,))

        for head_size in _HEAD_SIZES:
            for batch in _BATCHES:
                yield from case(bf16, head_size, batch, "symmetric")
            yield from case(fp32, head_size, (32, 128), "symmetric")
        for batch in ((1, 128), (32, 128), (32, 384)):
            for scheme in SCHEMES:
                yield from case(bf16, 64, batch, scheme)
            yield from case(fp16, 64, batch, "asymmetric")
            yield from case(bf16, 64, batch, "symmetric", bias=True)
            yield from case(bf16, 32, batch, "none")
        for scheme in SCHEMES:
            yield from case(fp32, 64, (32, 128), scheme)
        yield from case(fp32, 64, (32, 128), "symmetric", bias=True)
