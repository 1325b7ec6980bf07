"""What families do for a product, as :mod:`.predict` takes it."""

from __future__ import annotations

from ...kernels.linear.tiles import Config
from .predict import Work
from .problem import Problem

LIBRARY_SHARE = {"half": 0.8, "int8": 0.7, "fp32": 0.9}
"""Of the peak, what cuBLASLt should reach on large products; inferred, not measured (H100: 0.79 and
1.4 P operations/s)."""

DENSE_SHARE = {"half": 0.65, "int8": 0.6, "fp32": 0.6}
"""The same for our dense kernel: what Triton kernels of this form should reach; assumed."""

EXPANDING_SHARE = {"half": 0.3, "int8": 0.25, "fp32": 0.5}
"""For kernels that expand a packed tile before they multiply it, assumed: half of dense."""

BLOCK_SHARE = {"half": 0.55, "int8": 0.5, "fp32": 0.55}
"""For blocks, whose loads of inputs follow an index; assumed (H100: 0.55 P operations/s
of bf16)."""

FLOAT_BYTES = 4.0
"""Of a result: a model in bf16 or fp16 writes half."""

HIGHEST_TILE = 128
"""Outputs that read an input together, at most (kernels/block/layout.py)."""


def tile_work(
    problem: Problem, tokens: int, config: Config, nbytes: float, share: dict[str, float]
) -> Work:
    """Of the kernel that multiplies tiles of a weight, stored or not (kernels/linear)."""
    tiles = -(-tokens // config.block_m) * -(-problem.out_features // config.block_n)
    parts = tokens * problem.out_features * 4.0 * config.split_k if config.split_k > 1 else 0.0
    return Work(
        weight_bytes=nbytes,
        operations=2.0 * tokens * problem.weights,
        peak_share=share[problem.product],
        programs=tiles * config.split_k,
        extra_bytes=2 * (parts + range_bytes(problem, tokens)),
    )


def block_work(problem: Problem, tokens: int, nbytes: float, block_rows: int) -> Work:
    """Of the kernel that multiplies stored blocks: each row of tiles reads its inputs from L2."""
    stored = problem.density * problem.weights
    return Work(
        weight_bytes=nbytes,
        operations=2.0 * tokens * stored,
        peak_share=BLOCK_SHARE[problem.product],
        programs=None,  # long rows are cut as suits the GPU
        extra_bytes=tokens * stored * problem.itemsize / min(block_rows, HIGHEST_TILE)
        + 2 * range_bytes(problem, tokens),
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
        between_bytes=2.0 * sums * tokens * problem.out_features + range_bytes(problem, tokens),
    )


def range_bytes(problem: Problem, tokens: int) -> float:
    """Of the floats that are written because a row's scale is known once all of it is.

    Our kernels read them back; a library's epilogue has whole rows, and only writes them.
    """
    return FLOAT_BYTES * tokens * problem.out_features if problem.dynamic else 0.0
