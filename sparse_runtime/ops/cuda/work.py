"""What families do for a product, as :mod:`.predict` takes it."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...kernels.linear.configs import Config, workspace_needs
from .predict import Work
from .problem import Problem
from .stacked import StackedLayers
from .variants import Launcher, TritonVariant

LIBRARY_SHARE = {"half": 0.8, "int8": 0.7, "fp32": 0.9}
"""Of the peak, what cuBLASLt reaches on large products (H100: 0.79 and 1.4 P operations/s)."""

DENSE_SHARE = {"half": 0.65, "int8": 0.6, "fp32": 0.6}
"""The same for our dense kernel: what Triton kernels of this form are known to reach."""

EXPANDING_SHARE = {"half": 0.35, "int8": 0.3, "fp32": 0.5}
"""For kernels that expand a packed tile before they multiply it: half of the dense ones'."""

BLOCK_SHARE = {"half": 0.55, "int8": 0.5, "fp32": 0.55}
"""For blocks, whose loads of inputs follow an index."""


def tile_variant(
    launcher: Launcher, packed: Any, config: Config, layers: StackedLayers
) -> TritonVariant:
    """A weight for the kernel that multiplies tiles (kernels/linear/linear_triton.py)."""
    outputs = layers.matrix.shape[0]
    needs = partial(workspace_needs, out_features=outputs, config=config)
    return TritonVariant(launcher, packed, config, needs)


def tile_work(
    problem: Problem, tokens: int, config: Config, nbytes: float, share: dict[str, float]
) -> Work:
    """Of that kernel: it multiplies every weight, stored or not."""
    tiles = -(-tokens // config.block_m) * -(-problem.out_features // config.block_n)
    parts = tokens * problem.out_features * 4.0 * config.split_k if config.split_k > 1 else 0.0
    return Work(
        weight_bytes=nbytes,
        operations=2.0 * tokens * problem.weights,
        peak_share=share[problem.product],
        programs=tiles * config.split_k,
        extra_bytes=2 * parts,
    )


def library_work(problem: Problem, tokens: int, nbytes: float) -> Work:
    """Of a library's product and the kernel that ends it, which reads sums of four bytes."""
    sums = 4 if problem.dtype == "int8" else problem.itemsize
    return Work(
        weight_bytes=nbytes,
        operations=2.0 * tokens * problem.weights,
        peak_share=LIBRARY_SHARE[problem.product],
        programs=None,
        launches=2,
        extra_bytes=2.0 * sums * tokens * problem.out_features,
    )
