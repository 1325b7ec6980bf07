"""Launches of what surrounds the products, each on operands of its own, and what they must give."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime.benchmarks.encoder_shapes import EncoderShape
from sparse_runtime.benchmarks.gpu.records import Skipped
from sparse_runtime.kernels.attention import reference as attention_reference
from sparse_runtime.kernels.attention import varlen
from sparse_runtime.kernels.attention.schedule import default_config, query_blocks
from sparse_runtime.kernels.linear.operands import UINT8_OFFSET, Target
from sparse_runtime.kernels.linear.reference import quantize_rows_asymmetric
from sparse_runtime.kernels.padding import reference as padding_reference
from sparse_runtime.kernels.padding.operands import FIELDS, Padded, Stream
from sparse_runtime.ops.cuda.graphs import span_bucket
from sparse_runtime.ops.cuda.machine import machine_of
from sparse_runtime.ops.cuda.schedules import sequence_starts
from sparse_runtime.testing import assert_close_to_oracle

DEVICE = "cuda"
LONGEST = 128
"""Tokens of a sequence: of all but a last one, or at most."""

TABLES = (30522, 512, 2)
"""Rows of the tables of words, positions and token types."""

NORM_EPS = 1e-12
TYPE = torch.bfloat16


class Run(NamedTuple):
    """A launch on operands of its own.

    Attributes:
        call: enqueues it.
        moved: bytes that it must read and write at least.
        check: raises AssertionError where the results are wrong; calls nothing.
    """

    call: Callable[[], object]
    moved: int
    check: Callable[[], object]


Maker = Callable[[], Run]


@dataclass(frozen=True)
class Work:
    """One batch of an encoder.

    Attributes:
        shape: of the encoder.
        lengths: tokens of each sequence.
    """

    shape: EncoderShape
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Columns of the padded batch."""
        return max(self.lengths)

    @property
    def mask(self) -> Tensor:
        """bool [sequences, longest]."""
        lengths = torch.tensor(self.lengths, device=DEVICE).unsqueeze(1)
        return torch.arange(self.longest, device=DEVICE) < lengths

    @property
    def starts(self) -> Tensor:
        """int32 [sequences + 1]: where each begins, and the end."""
        ends = torch.tensor([0, *self.lengths], device=DEVICE).cumsum(0)
        return ends.to(torch.int32)


def lengths_of(tokens: int, kind: str) -> list[int]:
    """ "equal": LONGEST each; "ragged": any up to it; the last one is what is left."""
    numbers, found = random.Random(tokens), []
    while tokens:
        length = LONGEST if kind == "equal" else numbers.randint(1, LONGEST)
        found.append(min(length, tokens))
        tokens -= found[-1]
    return found


def normal(*shape: int) -> Tensor:
    """Random numbers of the activations' type."""
    return torch.randn(*shape, device=DEVICE).to(TYPE)


def bytes_of(*tensors: Tensor | None) -> int:
    """Each once."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def target_for(tokens: int, features: int, quantized: bool, blocks: int = 0) -> Target:
    """Floats, and with them uint8 rows, as an encoder's norms want them."""
    floats = torch.empty(tokens, features, dtype=TYPE, device=DEVICE)
    if not quantized:
        return Target(floats, features)
    target = Target(
        floats, features, torch.empty_like(floats, dtype=torch.int8), features,
        torch.empty(tokens, device=DEVICE), torch.empty(tokens, dtype=torch.int32, device=DEVICE),
    )  # fmt: skip
    if not blocks:
        return target
    ranges = torch.zeros(2, tokens, dtype=torch.int32, device=DEVICE)
    return target._replace(ranges=ranges, counters=torch.zeros_like(ranges[0, :1]).repeat(blocks))


def check_target(target: Target, expected: Callable[[torch.dtype], Tensor] | Tensor) -> None:
    """Floats are as close as PyTorch's (given by type), and rows quantized as the reference's."""
    floats = expected
    if not isinstance(floats, Tensor):
        assert target.floats is not None
        assert_close_to_oracle(target.floats, floats(torch.float64), floats(TYPE), name="ours")
        floats = target.floats
    if target.q is None:
        return
    q, scale, zero = quantize_rows_asymmetric(floats.float())
    found = (target.q.int() + UINT8_OFFSET, target.scale, target.zero)
    for one, other in zip(found, (q.int(), scale, zero.int() - UINT8_OFFSET), strict=True):
        assert one is not None and torch.equal(one, other), "rows are not quantized as PyTorch's"


def written(target: Target) -> int:
    """Bytes of a result."""
    return bytes_of(target.floats, target.q, target.scale, target.zero)


def embedding(work: Work) -> Iterator[tuple[str, Maker]]:
    """Three tables, added and normalized."""
    from sparse_runtime.kernels.embedding.embedding_triton import embed

    features = work.shape.hidden
    tables = tuple(normal(rows, features) for rows in TABLES)
    weight, bias = normal(features), normal(features)

    def expected(ids: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        pairs = zip(ids, tables, strict=True)
        words, places, types = (F.embedding(index, table.to(dtype)) for index, table in pairs)
        total, norm = words + places + types, (weight.to(dtype), bias.to(dtype))
        return F.layer_norm(total, (features,), *norm, NORM_EPS)

    def make(quantized: bool | None) -> Run:
        ids = tuple(torch.randint(rows, (work.tokens,), device=DEVICE) for rows in TABLES)
        target = target_for(work.tokens, features, bool(quantized))
        read = sum(min(work.tokens, rows) for rows in TABLES) * features * TYPE.itemsize
        moved = bytes_of(*ids) + read + written(target)
        if quantized is None:
            return Run(partial(expected, ids, TYPE), moved, lambda: None)
        scheme = "asymmetric" if quantized else "none"
        call = partial(embed, ids, tables, weight, bias, NORM_EPS, "layer_norm", target, scheme)
        return Run(call, moved, partial(check_target, target, partial(expected, ids)))

    yield from three(make)


def three(make: Callable[[bool | None], Run]) -> Iterator[tuple[str, Maker]]:
    """Ours with floats alone and with quantized rows, and PyTorch's operations."""
    for name, quantized in (("ours", False), ("ours quantized", True), ("torch", None)):
        yield name, partial(make, quantized)


def norm(work: Work) -> Iterator[tuple[str, Maker]]:
    """A residual added, and the sum normalized."""
    from sparse_runtime.kernels.layer_norm.layer_norm_triton import normalize

    features = work.shape.hidden
    weight, bias = normal(features), normal(features)

    def expected(x: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
        total, norm = x.to(dtype) + residual.to(dtype), (weight.to(dtype), bias.to(dtype))
        return F.layer_norm(total, (features,), *norm, NORM_EPS)

    def make(quantized: bool | None) -> Run:
        x, residual = (normal(work.tokens, features) for _ in range(2))
        target = target_for(work.tokens, features, bool(quantized))
        moved = bytes_of(x, residual) + written(target)
        if quantized is None:
            return Run(partial(expected, x, residual, TYPE), moved, lambda: None)
        scheme = "asymmetric" if quantized else "none"
        call = partial(normalize, x, residual, weight, bias, NORM_EPS, target, scheme)
        return Run(call, moved, partial(check_target, target, partial(expected, x, residual)))

    yield from three(make)


def quantize(work: Work) -> Iterator[tuple[str, Maker]]:
    """Rows of the residual's width, and of the feed-forward's."""
    from sparse_runtime.kernels.quantize.quantize_rows_triton import quantize_rows

    def make(features: int) -> Run:
        x = normal(work.tokens, features)
        target = target_for(work.tokens, features, True)._replace(floats=None)
        call = partial(quantize_rows, x, target, "asymmetric")
        return Run(call, bytes_of(x) + written(target), partial(check_target, target, x))

    for features in (work.shape.hidden, work.shape.linears["ffn_out"][1]):
        yield f"ours of {features}", partial(make, features)


def scan_and_unpad(work: Work) -> Iterator[tuple[str, Maker]]:
    """A padded batch looked at, and written as a stream of tokens."""
    from sparse_runtime.kernels.padding.scan_triton import scan
    from sparse_runtime.kernels.padding.unpad_triton import unpad

    mask = work.mask.long()

    def padded() -> Padded:
        return Padded(torch.randint(4, TABLES[0], mask.shape, device=DEVICE), mask.clone())

    def stream() -> Stream:
        numbers = torch.empty(5, work.tokens, dtype=torch.int64, device=DEVICE).unbind()
        return Stream(*(*numbers, torch.empty_like(work.starts)))

    def looked_at() -> Run:
        batch = padded()
        found: list[Tensor] = []
        moved = bytes_of(batch.ids, batch.mask) + 8 * len(FIELDS) * len(mask)

        def check() -> None:
            assert torch.equal(found[-1], padding_reference.scan(batch, None)), "not PyTorch's"

        def call() -> None:
            found[:] = [scan(batch, None)]

        return Run(call, moved, check)

    def streamed() -> Run:
        batch, lengths = padded(), mask.sum(1)
        streams = [stream(), stream()]

        def check() -> None:
            padding_reference.unpad(batch, None, streams[1])
            assert all(map(torch.equal, *streams)), "not PyTorch's"

        call = partial(unpad, batch, None, lengths, work.tokens, streams[0])
        return Run(call, bytes_of(batch.ids, batch.mask, *streams[0]), check)

    yield "ours scan", looked_at
    yield "ours unpad", streamed


def repad_and_pool(work: Work) -> Iterator[tuple[str, Maker]]:
    """A stream's rows put back among padding; the mean of each sequence's."""
    from sparse_runtime.kernels.padding.pool_triton import pool
    from sparse_runtime.kernels.padding.repad_triton import repad

    mask, starts, rows = work.mask, work.starts, work.mask.numel()
    index, columns = mask.flatten().nonzero().squeeze(1), mask.nonzero()[:, 1]

    def make(
        ours: Callable[[Tensor], Tensor], check: Callable[[Tensor, Tensor], None], out: int
    ) -> Run:
        tokens = normal(work.tokens, work.shape.hidden)
        found: list[Tensor] = []

        def call() -> None:
            found[:] = [ours(tokens)]

        moved = bytes_of(tokens, index) + out * work.shape.hidden * TYPE.itemsize
        return Run(call, moved, lambda: check(tokens, found[-1]))

    def same(tokens: Tensor, found: Tensor) -> None:
        assert torch.equal(found, padding_reference.repad(tokens, index, rows)), "not PyTorch's"

    def close(tokens: Tensor, found: Tensor) -> None:
        expected = padding_reference.pool(tokens, starts, columns, ("mean",))
        torch.testing.assert_close(found, expected)

    yield "ours repad", partial(make, lambda tokens: repad(tokens, index, rows), same, rows)
    yield (
        "ours pool",
        partial(
            make, lambda tokens: pool(tokens, starts, columns, ("mean",)), close, len(work.lengths)
        ),
    )


def attention(work: Work) -> Iterator[tuple[str, Maker]]:
    """Ours, PyTorch's variable-length one with what quantizes its result, and its padded one."""
    from sparse_runtime.kernels.attention.attention_triton import attention as ours
    from sparse_runtime.kernels.quantize.quantize_rows_triton import quantize_rows

    heads, features = work.shape.heads, work.shape.hidden
    size, device = features // heads, torch.device(DEVICE)
    scale, machine = size**-0.5, machine_of(device)
    config = default_config(
        size, work.longest, len(work.lengths), heads, TYPE, machine.capability, machine.processors
    )
    blocks = query_blocks(work.lengths, config.block_q).to(device)
    # As the encoder gives them to PyTorch's: filled up to their buckets.
    starts, longest = sequence_starts(work.lengths).to(device), span_bucket(work.longest)

    def expected(qkv: Tensor, dtype: torch.dtype) -> Tensor:
        return attention_reference.attention(qkv.to(dtype), work.lengths, heads, scale)

    def run(make_call: Callable[[Tensor, Target], Callable[[], object]], quantized: bool) -> Run:
        qkv = normal(work.tokens, 3 * features)
        target = target_for(work.tokens, features, quantized, len(blocks))
        check = partial(check_target, target, partial(expected, qkv))
        return Run(make_call(qkv, target), bytes_of(qkv) + written(target), check)

    def triton(qkv: Tensor, target: Target) -> Callable[[], object]:
        scheme = "none" if target.q is None else "asymmetric"
        return partial(ours, qkv, blocks, heads, scale, None, None, target, scheme, config)

    def theirs(qkv: Tensor, target: Target) -> Callable[[], object]:
        if reason := varlen.unavailable(device, TYPE, size):
            raise Skipped(reason)
        floats = target.floats
        assert floats is not None

        def call() -> None:
            varlen.varlen_attention(qkv, starts, longest, heads, scale, floats)
            if target.q is not None:
                quantize_rows(floats, target._replace(floats=None), "asymmetric")

        return call

    def sdpa(qkv: Tensor, target: Target) -> Callable[[], object]:
        if min(work.lengths) < work.longest:
            raise Skipped("takes sequences of one length")
        q, k, v = qkv.view(len(work.lengths), work.longest, 3, heads, size).permute(2, 0, 3, 1, 4)
        floats = target.floats
        assert floats is not None
        into = floats.view(len(work.lengths), work.longest, heads, size).transpose(1, 2)
        into.copy_(F.scaled_dot_product_attention(q, k, v, scale=scale))  # what is checked
        return partial(F.scaled_dot_product_attention, q, k, v, scale=scale)

    for name, make in (("ours", triton), ("varlen", theirs)):
        yield name, partial(run, make, False)
        yield f"{name} quantized", partial(run, make, True)
    yield "sdpa", partial(run, sdpa, False)
