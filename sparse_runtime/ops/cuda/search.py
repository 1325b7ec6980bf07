"""Configurations worth measuring: at most a dozen for a kind of product and a number of tokens."""

from __future__ import annotations

from itertools import product as pairs

from ...kernels.linear.configs import Config, default_config
from .machine import Machine
from .problem import Problem

MOST_CONFIGS = 12

_K_STEPS = {"int8": (128, 64), "half": (64, 32), "fp32": (32,)}
_SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10}
_SHARED_BYTES_LATER = 227 << 10
_LARGE_TILE = 128 * 128


def tile_configs(problem: Problem, tokens: int, machine: Machine) -> list[Config]:
    """Of the kernel that multiplies tiles (kernels/linear): its default, then others."""
    sizes = (problem.out_features, problem.in_features)
    found = [default_config(problem.product, tokens, *sizes, machine.capability)]
    heights = _heights(tokens)
    widths = (32, 64, 128) if tokens <= 64 else (128, 64, 256)
    # Ordered so that a cut at the end leaves each height with its widths.
    for stages, k, (m, n) in pairs((3, 4), _K_STEPS[problem.product], pairs(heights, widths)):
        config = Config(m, n, k, 1, 8 if m * n >= _LARGE_TILE else 4, stages)
        config = config._replace(split_k=_splits(problem, tokens, config, machine))
        if config not in found and _fits(problem, config, machine):
            found.append(config)
    return found[:MOST_CONFIGS]


def _heights(tokens: int) -> tuple[int, ...]:
    if tokens <= 16:
        return (16,)
    return (16, 32, 64) if tokens <= 64 else (64, 128)


def _splits(problem: Problem, tokens: int, config: Config, machine: Machine) -> int:
    """As many as give every multiprocessor a program, each with two steps or more."""
    tiles = -(-tokens // config.block_m) * -(-problem.out_features // config.block_n)
    steps = -(-problem.in_features // config.block_k)
    splits = 1
    while splits < 8 and 2 * splits * tiles <= machine.processors and 4 * splits <= steps:
        splits *= 2
    return splits


def _fits(problem: Problem, config: Config, machine: Machine) -> bool:
    operands = (config.block_m + config.block_n) * config.block_k * problem.itemsize
    limit = _SHARED_BYTES.get(machine.capability, _SHARED_BYTES_LATER)
    return operands * config.num_stages <= limit
