"""What of the unstructured family is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..ahead_of_time import Case
from ..linear.operands import Epilogue, Quantized, Target
from ..linear.tiles import Config, Workspace, workspace_needs
from ..nm.layout import NMWeight
from .configs import offered
from .layout import UnstructuredWeight, pack

DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def product_of(dtype: str) -> str:
    """The kind of products of a dtype."""
    return "half" if dtype in ("bf16", "fp16") else dtype


def name_of(config: Config) -> str:
    """A configuration in a case's name."""
    m, n, k, split, warps, stages, *_ = config
    return f"{m}x{n}x{k}, split {split}, {warps} warps, {stages} stages"


def compile_cases() -> Iterator[Case]:
    """Every dtype and configuration; the first with inputs that do not fill the last tile."""
    for dtype in DTYPES:
        for config, inputs in every(dtype):
            yield Case(
                name=f"linear unstructured {dtype} {name_of(config)}, {inputs} inputs",
                call=partial(launch, dtype, config, inputs),
                tensor_cores=dtype != "fp32",
            )


def every(dtype: str) -> Iterator[tuple[Config, int]]:
    """Configurations and numbers of inputs that a dtype is compiled with."""
    configs = list(offered(product_of(dtype)))
    yield configs[0], 776
    for config in configs:
        yield config, 768


def launch(dtype: str, config: Config, inputs: int) -> None:
    """Call the launcher for a matrix of zeros."""
    run(pack(torch.zeros(768, inputs, dtype=DTYPES[dtype])), dtype, config, inputs)


def run(weight: UnstructuredWeight | NMWeight, dtype: str, config: Config, inputs: int) -> None:
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
    x: Quantized | Tensor = q
    weight_scale = None
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
