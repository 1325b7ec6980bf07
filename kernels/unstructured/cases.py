"""What of the unstructured family is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import Case
from ..linear.operands import Epilogue, Quantized, Target
from ..linear.tiles import Config, Workspace, workspace_needs
from .layout import pack

DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Tiles low in tokens, where weights stream, up to the lowest that Hopper's own tensor-core
# instructions take. Higher ones would expand no fewer weights a product than dense tiles read.
CONFIGS = {
    "int8": (
        Config(16, 64, 128, split_k=2),
        Config(16, 64, 256),
        Config(32, 64, 128),
        Config(64, 64, 128, num_warps=8),
    ),
    "half": (
        Config(16, 64, 64, split_k=2, num_warps=8),
        Config(16, 64, 128),
        Config(32, 64, 64),
        Config(64, 64, 64),
    ),
    "fp32": (Config(16, 64, 32, split_k=2), Config(32, 64, 32)),
}


def configs_of(dtype: str) -> tuple[Config, ...]:
    """The configurations that a dtype is compiled with."""
    return CONFIGS["half" if dtype in ("bf16", "fp16") else dtype]


def name_of(config: Config) -> str:
    """A configuration in a case's name."""
    m, n, k, split, warps, stages, *_ = config
    return f"{m}x{n}x{k}, split {split}, {warps} warps, {stages} stages"


def compile_cases() -> Iterator[Case]:
    """Every dtype and configuration; inputs that fill the last tile and such that do not."""
    for dtype in DTYPES:
        for config in configs_of(dtype):
            for inputs in (768, 776):
                yield Case(
                    name=f"linear unstructured {dtype} {name_of(config)}, {inputs} inputs",
                    call=partial(launch, dtype, config, inputs),
                    tensor_cores=dtype != "fp32",
                )


def launch(dtype: str, config: Config, inputs: int) -> None:
    """Call the launcher for a matrix of zeros."""
    run(pack(torch.zeros(768, inputs, dtype=DTYPES[dtype])), dtype, config, inputs)


def run(weight: tuple[object, ...], dtype: str, config: Config, inputs: int) -> None:
    """Call the tile kernel with a bias, GELU, and rows quantized by their range for int8.

    Args:
        weight: a packed matrix of 768 outputs.
        dtype: a key of ``DTYPES``.
        config: tiles and schedule.
        inputs: the matrix's columns.
    """
    from ..linear.linear_triton import linear

    tokens, outputs = 4 * config.block_m, 768
    floats = torch.empty(
        tokens, outputs, dtype=torch.bfloat16 if dtype == "int8" else DTYPES[dtype]
    )
    target, scheme = Target(floats, outputs), "none"
    q = torch.empty(tokens, -(-inputs // 16) * 16, dtype=DTYPES[dtype])[:, :inputs]
    x, weight_scale = q, None
    if dtype == "int8":
        x = Quantized(q, q.stride(0), torch.empty(tokens), None, 1)
        weight_scale = torch.empty(outputs)
        scheme = "symmetric"
        target = target._replace(
            q=torch.empty(tokens, outputs, dtype=torch.int8),
            q_stride=outputs,
            scale=torch.empty(tokens),
            ranges=torch.empty(2, tokens, dtype=torch.int32),
            counters=torch.empty(tokens, dtype=torch.int32),
        )
    sums, counts = workspace_needs(tokens, outputs, config)
    workspace = Workspace(
        torch.empty(sums) if sums else None, torch.empty(max(counts, 1), dtype=torch.int32)
    )
    epilogue = Epilogue(weight_scale=weight_scale, bias=torch.empty(outputs))
    linear(x, weight, epilogue, "gelu", target, scheme, config, workspace)
