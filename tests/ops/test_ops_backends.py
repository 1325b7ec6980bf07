"""The fused operations: the CPU backend against the reference, and both against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.ops import LinearWeight, Norm, TokenBatch, can_fuse, get_backend
from sparse_runtime.spec import ActivationSpec, LinearSpec, Structure, ValueSpec
from sparse_runtime.testing import assert_close_to_oracle, make_activations, make_packed

HEADS, HEAD_SIZE = 3, 8
FEATURES = HEADS * HEAD_SIZE
# Equal lengths take one batched call; ragged ones, single tokens and empty rows one by one.
LENGTHS = {
    "equal": [5, 5, 5],
    "ragged": [7, 1, 12],
    "one": [9],
    "with an empty row": [4, 0, 2],
    "only empty rows": [0, 0],
    "none": [],
}


def token_batch(lengths: list[int], *, left_padded: bool = False) -> TokenBatch:
    seq_len = max(lengths, default=0) + 2
    columns = [torch.arange(n) + (seq_len - n if left_padded else 0) for n in lengths] or [
        torch.zeros(0, dtype=torch.int64)
    ]
    positions = torch.cat(columns)
    rows = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)] or columns)
    return TokenBatch(
        lengths=lengths,
        row_positions=positions,
        index=rows * seq_len + positions,
        batch_size=len(lengths),
        seq_len=seq_len,
    )


def make_packed_from(weight: Tensor) -> PackedWeight:
    spec = LinearSpec(tuple(weight.shape), Structure("dense"), ValueSpec("fp32"))
    return pack(weight.contiguous(), spec)


def dense_attention(qkv: Tensor, batch: TokenBatch, scale: float, bias: Tensor | None) -> Tensor:
    """The definition, sequence by sequence, in qkv's own precision."""
    outputs, start = [qkv[:0, :FEATURES]], 0
    for length in batch.lengths:
        rows = slice(start, start + length)
        q, k, v = (t.unflatten(1, (HEADS, -1)) for t in qkv[rows].chunk(3, dim=1))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if bias is not None:
            at = batch.row_positions[rows]
            scores = scores + bias.to(qkv.dtype)[:, at][:, :, at]
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))
        start += length
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("case", LENGTHS)
def test_attention_is_close_to_the_oracle(case: str, with_bias: bool, name: str) -> None:
    batch = token_batch(LENGTHS[case], left_padded=True)
    backend = get_backend(name, "cpu", torch.float32)
    qkv = make_activations(sum(batch.lengths), 3 * FEATURES)
    span = batch.seq_len
    bias = make_activations(HEADS * span, span, seed=4).view(HEADS, span, span)
    bias = bias if with_bias else None
    if name == "cpu" and not sum(batch.lengths):
        with pytest.raises(ValueError, match="expected at least one sequence"):
            backend.from_tokens(batch, qkv)  # encoders return before they come here
        return
    y = backend.to_tokens(
        backend.attention(backend.from_tokens(batch, qkv), batch, heads=HEADS, scale=0.3, bias=bias)
    )
    oracle = dense_attention(qkv.double(), batch, 0.3, bias)
    assert_close_to_oracle(y, oracle, dense_attention(qkv, batch, 0.3, bias))


def test_sequences_do_not_see_each_other() -> None:
    backend = get_backend("cpu", "cpu", torch.float32)
    qkv = make_activations(12, 3 * FEATURES)
    batch = token_batch([7, 5])

    def attend(x: Tensor) -> Tensor:
        value = backend.attention(backend.from_tokens(batch, x), batch, heads=HEADS, scale=0.3)
        return backend.to_tokens(value)

    together = attend(qkv)
    alone = attend(torch.cat([qkv[:7], 100 * qkv[7:]]))
    assert torch.equal(together[:7], alone[:7])
    assert not torch.equal(together[7:], alone[7:])


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_layers_that_quantize_their_input_differently_run_side_by_side(name: str) -> None:
    schemes = ("dynamic", "none", ActivationSpec("static", "int8", 0.05))
    weights = [
        LinearWeight(f"part {i}", make_packed((10 + i, 24), values="int8", activations=scheme))
        for i, scheme in enumerate(schemes)
    ]
    assert not can_fuse(weights)
    backend = get_backend(name, "cpu", torch.float32)
    layer = backend.prepare_linear(weights)
    assert len(backend.decisions) == 3
    assert layer.out_features == 33
    x, residual = make_activations(5, 24), make_activations(5, 33, seed=2)
    parts = [get_backend(name, "cpu", torch.float32).prepare_linear([w])(x) for w in weights]
    assert torch.equal(layer(x), torch.cat(parts, dim=1))
    expected = torch.cat([F.gelu(part) for part in parts], dim=1) + residual
    assert torch.allclose(layer(x, "gelu", residual), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"part 0 \+ part 1 \+ part 2: expected x"):
        layer(torch.ones(5, 23))


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_fused_layers_are_one_decision_and_equal_the_separate_ones(name: str) -> None:
    weights = [
        LinearWeight(n, make_packed((12, 24), "2:4", values="int8", seed=i))
        for i, n in enumerate(("query", "key", "value"))
    ]
    assert can_fuse(weights)
    backend = get_backend(name, "cpu", torch.float32)
    layer = backend.prepare_linear(weights)
    assert [decision.request.name for decision in backend.decisions] == ["query + key + value"]
    x = make_activations(6, 24)
    separate = [backend.prepare_linear([weight])(x) for weight in weights]
    assert torch.equal(layer(x), torch.cat(separate, dim=1))
    assert len(backend.decisions) == 4


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_linear_with_activation_residual_and_norm(name: str) -> None:
    backend = get_backend(name, "cpu", torch.float32)
    packed = make_packed((16, 24), values="fp32")
    layer = backend.prepare_linear([LinearWeight("layer", packed, torch.ones(16))])
    x = make_activations(5, 24)
    norm = Norm(torch.linspace(0.5, 2, 16), torch.linspace(-1, 1, 16), 1e-12)
    # Values meet only within one pass, so the residual is made in it: the identity of 16 features.
    same = backend.prepare_linear(
        [LinearWeight("same", make_packed_from(torch.eye(24)[:16]), None)]
    )
    tokens = backend.from_tokens(token_batch([5]), x)
    residual = backend.linear(tokens, same)
    y = backend.to_tokens(
        backend.linear(tokens, layer, activation="relu", residual=residual, norm=norm)
    )

    def compute(dtype: torch.dtype) -> Tensor:
        z = F.linear(x.to(dtype), packed.dequantize(dtype), torch.ones(16, dtype=dtype))
        z = z.relu() + x[:, :16].to(dtype)
        return F.layer_norm(z, (16,), norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    assert_close_to_oracle(y, compute(torch.float64), compute(torch.float32))


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_embed_adds_the_rows_of_every_table(name: str) -> None:
    backend = get_backend(name, "cpu", torch.float32)
    words, places = make_activations(9, 16), make_activations(4, 16, seed=1)
    ids = (torch.tensor([8, 0, 3]), torch.tensor([0, 1, 3]))
    batch = token_batch([3])
    norm = Norm(torch.ones(16), torch.zeros(16), 1e-12)
    total = words[ids[0]] + places[ids[1]]
    assert torch.equal(backend.to_tokens(backend.embed(batch, ids, (words, places), None)), total)
    normed = backend.to_tokens(backend.embed(batch, ids, (words, places), norm))
    assert torch.allclose(normed.mean(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(normed, F.layer_norm(total, (16,)), atol=1e-5)
