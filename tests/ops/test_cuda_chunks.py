"""What a chunk of tokens loses to memory, by a model of L2, against what one chunk more costs."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.ops import LinearWeight, Norm, TokenBatch, get_backend
from sparse_runtime.ops.cuda.backend import CHUNK
from sparse_runtime.ops.cuda.plan import Plan, make_plan
from sparse_runtime.ops.cuda.values import Attend, Linear
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_packed

DYNAMIC = ActivationSpec("dynamic", "uint8")
BATCH = TokenBatch([3, 2], torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 3, 4]), 2, 3)
LAUNCH = 1.3e-6
"""Seconds of a launch within a CUDA graph, at least (docs/kernels/cuda_encoder.md)."""


class Gpu(NamedTuple):
    """Bytes of L2, bytes a second of memory and of L2, operations a second that are reached."""

    l2: int
    bandwidth: float
    l2_bandwidth: float
    operations: dict[str, float]


A100 = Gpu(40 << 20, 2.04e12, 4.5e12, {"int8": 0.44e15, "half": 0.25e15, "attention": 0.15e15})
H100 = Gpu(50 << 20, 3.35e12, 5.5e12, {"int8": 1.4e15, "half": 0.79e15, "attention": 0.45e15})
SEQUENCE = 128
STEPS = 7
"""Of a layer."""


class Encoder(NamedTuple):
    """Sizes of a model."""

    hidden: int
    heads: int
    inner: int
    layers: int


BASE, LARGE = Encoder(768, 12, 3072, 12), Encoder(1024, 16, 4096, 24)


@cache
def plan_of(encoder: Encoder, activations: Any) -> Plan:
    """The plan of six layers in bf16: what lies where repeats."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = get_backend("cuda", device, torch.bfloat16)
    hidden, inner = encoder.hidden, encoder.inner
    sizes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    values = "bf16" if activations == "none" else "int8"
    qkv, out, first, second = (
        backend.prepare_linear(
            [LinearWeight("layer", make_packed(size, values=values, activations=activations))]
        )
        for size in sizes
    )
    norm = Norm(torch.ones(hidden), torch.zeros(hidden), 1e-12)
    x = backend.embed(BATCH, (BATCH.row_positions,), (torch.ones(9, hidden),), norm)
    for _ in range(6):
        y = backend.linear(x, qkv)
        y = backend.attention(y, BATCH, heads=encoder.heads, scale=0.125)
        x = backend.linear(y, out, residual=x, norm=norm)
        y = backend.linear(x, first, activation="gelu")
        x = backend.linear(y, second, residual=x, norm=norm)
    return make_plan(x, 2)


def touched(plan: Plan, tokens: int) -> list[dict[Any, tuple[float, bool]]]:
    """By step: bytes of everything that it reads or writes, and whether it writes it."""
    weight_bytes = 2 if not plan.specs else 1
    found = []
    for step in plan.steps:
        node = step.value.node
        here: dict[Any, tuple[float, bool]] = {}
        for read in node.reads:
            for buffer in plan.stored[read].buffers:
                here[buffer] = (tokens * buffer.size, False)
        for form in (None, step.fused):
            storage = plan.stored.get((step.value, form))
            for buffer in storage.buffers if storage else ():
                here[buffer] = (tokens * buffer.size, True)
        if isinstance(node, Linear):
            here[step] = (weight_bytes * node.x.features * step.value.features, False)
        found.append(here)
    return found


def exposed_seconds(plan: Plan, tokens: int, gpu: Gpu) -> float:
    """How much longer a layer takes than if all activations stayed in L2.

    Steps go through the tokens in order. A row that is touched again is still in L2 where fewer
    bytes were touched in between; its last state is not written back where the buffer that comes to
    lie there overwrites it as soon. Weights come from memory in any case. Memory works beside the
    products: what counts is by how much it takes longer than they do.
    """
    steps = touched(plan, tokens)
    total = 0.0
    for now in range(1 + STEPS, 1 + 2 * STEPS):  # the second layer
        lost, every, weights = 0.0, 0.0, 0.0
        for buffer, (size, writes) in steps[now].items():
            if buffer is plan.steps[now]:
                weights = size
                continue
            every += size
            if writes:
                last = max(at for at in range(now, len(steps)) if buffer in steps[at])
                lost += size * share_lost(steps, last, overwritten(steps, buffer, last), gpu.l2)
            else:
                before = max(at for at in range(now) if buffer in steps[at])
                lost += size * share_lost(steps, before, now, gpu.l2)
        busy = max(products(plan.steps[now].value, tokens, gpu), every / gpu.l2_bandwidth)
        total += max(0.0, (lost + weights) / gpu.bandwidth - busy)
    return total


def products(value: Any, tokens: int, gpu: Gpu) -> float:
    """Seconds of the matrix products that make a value."""
    node = value.node
    if isinstance(node, Linear):
        kind = "half" if node.parts[0].activations is None else "int8"
        return 2 * tokens * node.x.features * value.features / gpu.operations[kind]
    if isinstance(node, Attend):
        return 4 * tokens * SEQUENCE * value.features / gpu.operations["attention"]
    return 0.0


def overwritten(steps: list[dict[Any, tuple[float, bool]]], buffer: Any, last: int) -> int:
    """The first step behind ``last`` that writes where a buffer lies."""
    end = buffer.offset + buffer.size
    return next(
        at
        for at in range(last + 1, len(steps))
        for other, (_, writes) in steps[at].items()
        if writes and other.offset < end and buffer.offset < other.offset + other.size
    )


def share_lost(steps: list[dict[Any, tuple[float, bool]]], last: int, now: int, l2: int) -> float:
    """Of the rows touched by one step and then by another, those that left L2 in between."""
    lost, parts = 0, 16
    for part in range(parts):
        done = (part + 0.5) / parts
        between: dict[Any, float] = {}
        for at in range(last, now + 1):
            share = {last: 1 - done, now: done}.get(at, 1.0)
            for buffer, (size, _) in steps[at].items():
                known = between.get(buffer, 0.0)
                between[buffer] = min(size, known + share * size)
        lost += sum(between.values()) > l2
    return lost / parts


def lost_seconds(encoder: Encoder, activations: Any, chunk: int, gpu: Gpu) -> float:
    """Of 4,096 tokens in chunks, through all layers: what waits for memory, and launches."""
    exposed = exposed_seconds(plan_of(encoder, activations), chunk, gpu)
    return 4096 / chunk * encoder.layers * (exposed + STEPS * LAUNCH)


@pytest.mark.parametrize("activations", [DYNAMIC, "none"])
@pytest.mark.parametrize("gpu", [A100, H100], ids=["A100", "H100"])
@pytest.mark.parametrize("encoder", [BASE, LARGE], ids=["base", "large"])
def test_smaller_chunks_cost_more_launches_than_misses(
    encoder: Encoder, gpu: Gpu, activations: Any
) -> None:
    here = lost_seconds(encoder, activations, CHUNK, gpu)
    assert here < lost_seconds(encoder, activations, CHUNK // 2, gpu)
    assert here < 1.2 * encoder.layers * STEPS * LAUNCH  # the launches are nearly all of it


@pytest.mark.parametrize(
    ("encoder", "gpu"), [(BASE, A100), (LARGE, A100), (LARGE, H100)], ids=["A base", "A", "H"]
)
def test_larger_chunks_cost_more_misses_than_launches(encoder: Encoder, gpu: Gpu) -> None:
    here = lost_seconds(encoder, DYNAMIC, CHUNK, gpu)
    assert here < lost_seconds(encoder, DYNAMIC, 2 * CHUNK, gpu)
