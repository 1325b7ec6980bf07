"""What of the dense linear kernel is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product as pairs

import torch
from torch import Tensor

from ..ahead_of_time import CAPABILITIES, Case
from ..defaults import PRODUCTS
from ..dense.layout import DenseWeight
from .configs import offered
from .epilogue_cases import epilogue_cases
from .operands import Epilogue, Quantized, Target
from .tiles import Config, Workspace, row_blocks, workspace_needs

DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HALVES = ("bf16", "fp16")

LAYERS = {
    "int8": ("attention_out", "ffn_in", "static", "asymmetric"),
    "half": ("attention_out", "ffn_in", "quantized"),
    "fp32": ("attention_out", "ffn_in"),
}
"""Which layers a kind of product is compiled for; :func:`launch` says what each has."""

SHOWN = ((16, 32), (64, 64), (64, 128), (128, 128), (128, 256))
"""Tiles that are compiled for every layer; the others for the layer with most to do."""


def compile_cases() -> Iterator[Case]:
    """Every configuration that may run, in every dtype, on the GPUs that it is for; epilogues."""
    yield from epilogue_cases()
    uses: dict[tuple[str, Config], tuple[tuple[int, int, int], list[int]]] = {}
    for capability, product in pairs(CAPABILITIES, PRODUCTS):
        for config, sizes in offered(product, capability).items():
            uses.setdefault((product, config), (sizes, []))[1].append(capability)
    shown: set[tuple[str, int, int, bool, bool]] = set()
    for (product, config), (sizes, capabilities) in uses.items():
        kind = (product, config.block_m, config.block_n, config.split_k > 1, config.tma)
        full = kind[1:3] in SHOWN and kind not in shown
        shown.add(kind)
        dtypes = HALVES if product == "half" else (product,)
        for dtype, layer in pairs(dtypes, LAYERS[product] if full else ("ffn_in",)):
            yield Case(
                name=f"{name_of(dtype, config)}: {layer}",
                call=partial(launch, dtype, layer, sizes, config),
                tensor_cores=dtype != "fp32",
                capabilities=tuple(capabilities),
            )


def name_of(dtype: str, config: Config) -> str:
    """A dtype and a configuration in a case's name."""
    m, n, k, split, warps, stages, _, tma = config
    schedule = f"split {split}, {warps} warps, {stages} stages{', TMA' if tma else ''}"
    return f"linear dense {dtype} {m}x{n}x{k}, {schedule}"


def launch(dtype: str, layer: str, sizes: tuple[int, int, int], config: Config) -> None:
    """Call the launcher for one layer of a model.

    Args:
        dtype: a key of ``DTYPES``: of inputs and weights.
        layer: "attention_out" ends in floats with a residual, "ffn_in" in the activation function
            and dynamic rows where inputs are quantized; "quantized" has these for floats, "static"
            a static quantizer, "asymmetric" zero points everywhere and quantizers of outputs.
        sizes: tokens, outputs, inputs.
        config: tiles and schedule.
    """
    from .linear_triton import linear

    tokens, outputs, inputs = sizes
    integers, zeros = dtype == "int8", layer == "asymmetric"
    kind = torch.bfloat16 if integers else DTYPES[dtype]
    q = torch.empty(tokens, inputs, dtype=DTYPES[dtype])
    zero = _integers(tokens) if zeros else None
    x = Quantized(q, inputs, torch.empty(tokens), zero, 1) if integers else q
    residual = torch.empty(tokens, outputs, dtype=kind) if layer == "attention_out" else None
    epilogue = Epilogue(
        weight_scale=torch.empty(outputs) if integers else None,
        weight_sum=_integers(outputs) if zeros else None,
        weight_zero=_integers(outputs) if zeros else None,
        bias=torch.empty(outputs),
        out_scale=torch.empty(outputs) if zeros else None,
        out_zero=_integers(outputs) if zeros else None,
        out_low=_integers(outputs) if zeros else None,
        out_high=_integers(outputs) if zeros else None,
        residual=residual,
        residual_stride=0 if residual is None else outputs,
    )
    scheme = layer if layer in ("static", "asymmetric") else "none"
    if layer == "quantized" or (layer == "ffn_in" and integers):
        scheme = "symmetric"
    target = _target(tokens, outputs, kind, scheme, config)
    sums, counts = workspace_needs(tokens, outputs, config)
    workspace = Workspace(torch.empty(sums) if sums else None, _integers(max(counts, 1)))
    activation = None if layer == "attention_out" else "gelu"
    weight = DenseWeight(torch.empty(outputs, inputs, dtype=DTYPES[dtype]))
    linear(x, weight, epilogue, activation, target, scheme, config, workspace)


def _target(tokens: int, outputs: int, kind: torch.dtype, scheme: str, config: Config) -> Target:
    floats = torch.empty(tokens, outputs, dtype=kind)
    if scheme == "none":
        return Target(floats, outputs)
    q = torch.empty(tokens, outputs, dtype=torch.int8)
    if scheme == "static":
        return Target(None, 0, q, outputs, torch.empty(1), _integers(1))
    return Target(
        floats,
        outputs,
        q,
        outputs,
        torch.empty(tokens),
        _integers(tokens) if scheme == "asymmetric" else None,
        ranges=torch.empty(2, tokens, dtype=torch.int32),
        counters=_integers(row_blocks(tokens, config)),
    )


def _integers(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int32)
