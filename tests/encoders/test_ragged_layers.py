"""Layers that differ: in heads, in feed-forward size, without one half, with norms or without.

What runs is compared with a plain PyTorch forward pass that is written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime import SparseModel
from sparse_runtime.encoders.families import FAMILIES
from sparse_runtime.store import load, save

LIMIT = 1e-5
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]


def quantized_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """int8 weights, a scale a row; uint8 inputs, a scale and a zero point a token: docs/formats."""
    w_scale = weight.abs().amax(1) / 127
    w = (weight / w_scale.unsqueeze(1)).round()
    low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
    x_scale = high / 255 - low / 255
    inverse = 1 / x_scale
    zero = (-low * inverse).round()
    q = ((x * inverse).round() + zero).clamp(0, 255)
    return F.linear((q - zero).double(), w.double()).float() * x_scale * w_scale + bias


def plain_forward(model: Any, ids: Tensor, linear: Linear = F.linear) -> Tensor:
    """Hidden states [tokens, hidden] of one sequence without padding."""
    family, state, config = FAMILIES[model.family], model.state, model.config
    eps = family.norm_eps or config["layer_norm_eps"]
    act = {"gelu": F.gelu, "relu": F.relu}[config[family.activation_key]]

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if config.get("layer_norm_type") == "no_norm":
            return x * weight + bias
        return F.layer_norm(x, (x.shape[1],), weight, bias, eps)

    def apply(x: Tensor, name: str) -> Tensor:
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    first = 0 if family.positions == "columns" else config["pad_token_id"] + 1
    rows = {
        "word": ids,
        "token_type": torch.zeros_like(ids),
        "position": torch.arange(first, first + len(ids)),
    }
    x = sum(state[f"{name}.weight"][rows[kind]] for kind, name in family.tables)
    x = norm(x, family.embedding_norm)
    if family.projection is not None:
        x = F.linear(x, state[f"{family.projection}.weight"], state[f"{family.projection}.bias"])
    bias = 0.0
    if family.relative_bias is not None:
        with torch.no_grad():
            bias = model.theirs.encoder.compute_position_bias(x.unsqueeze(0))[0]
    for i, (heads, neurons) in enumerate(model.plan):
        base, names = f"{model.stack}.{i}.", family.layer
        if heads is not None:
            q, k, v = (
                apply(x, base + name).view(len(x), len(heads), -1).transpose(0, 1)
                for name in names.qkv
            )
            scores = q @ k.transpose(1, 2) / model.head_size**0.5 + bias
            context = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
            x = norm(apply(context, base + names.attention_out) + x, base + names.attention_norm)
        if neurons is not None:
            inner = act(apply(x, base + names.ffn_in))
            x = norm(apply(inner, base + names.ffn_out) + x, base + names.ffn_norm)
    return x


def sequences(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, 61, (length,), generator=generator) for length in lengths]


def padded(texts: list[Tensor], pad: int) -> dict[str, Tensor]:
    longest = max(len(text) for text in texts)
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def errors(
    model: SparseModel, ragged: Any, texts: list[Tensor], linear: Linear
) -> tuple[float, float]:
    """Against the plain pass: (largest, norm), each over that of the outputs."""
    got = model(**padded(texts, ragged.config["pad_token_id"])).last_hidden_state
    expected = [plain_forward(ragged, text, linear) for text in texts]
    for row, text in enumerate(texts):
        assert not got[row, len(text) :].any()  # padding
    ours = torch.cat([got[row, : len(text)] for row, text in enumerate(texts)])
    theirs = torch.cat(expected)
    wrong = ours - theirs
    return float(wrong.abs().max() / theirs.abs().max()), float(wrong.norm() / theirs.norm())


def check(model: SparseModel, ragged: Any, texts: list[Tensor], values: str) -> None:
    """Floats within their rounding. In integers the reference is as close; elsewhere a float that
    differs in its last bit (or by bfloat16, in attention after quantized layers where there is AMX)
    may round to its other neighbour, one step in 255, and the next layers pass that on.
    """
    largest, norm = errors(model, ragged, texts, quantized_linear if values == "int8" else F.linear)
    if values == "fp32" or model.explain().startswith("backend reference"):
        assert largest < LIMIT
    else:
        assert largest < 3e-2 and norm < 3e-2


# More than one panel of 64 tokens and less than one vector of 16; then other lengths, which run
# what the first call recorded.
BATCHES = (sequences(70, 9, 1), sequences(3), sequences(40, 40, 64, 17), sequences(70, 9, 1))
# MPNet's heads share a table of biases with a column for each: its layers lose all or none.
ALL = [0, 1, 2, 3]
ALL_OR_NONE = ((ALL, 31), (None, 17), (ALL, None), (None, None), (ALL, 48))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet"])
def test_float_layers(family: str, backend: str, make_ragged: Any) -> None:
    ragged = make_ragged(family, ALL_OR_NONE) if family == "mpnet" else make_ragged(family)
    model = SparseModel.from_packed(ragged.packed(), backend=backend)
    for texts in BATCHES:
        check(model, ragged, texts, "fp32")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
def test_int8_layers(family: str, backend: str, make_ragged: Any) -> None:
    ragged = make_ragged(family, ALL_OR_NONE) if family == "mpnet" else make_ragged(family)
    model = SparseModel.from_packed(ragged.packed(values="int8"), backend=backend)
    for texts in BATCHES:
        check(model, ragged, texts, "int8")


@pytest.mark.parametrize("values", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("hidden", "kept"),
    [
        (48, 41),  # heads of 12 features, an odd hidden size: no whole vector, tile or pair
        (96, 70),  # heads of 24
        (256, 200),  # heads of 64 as in CoFi's models, more than one part of 64 rows
        (12, 11),  # heads of 3: no pairs for attention in bf16
    ],
)
def test_hidden_size_that_is_no_multiple_of_the_heads(
    hidden: int, kept: int, values: str, make_ragged: Any
) -> None:
    ragged = make_ragged("bert", hidden=hidden, kept_hidden=kept)
    for backend in ("reference", "cpu"):
        model = SparseModel.from_packed(ragged.packed(values=values), backend=backend)
        for texts in BATCHES[:3]:
            check(model, ragged, texts, values)


@pytest.mark.parametrize("values", ["fp32", "int8"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_norms_without_statistics(family: str, values: str, make_ragged: Any) -> None:
    activation = "activation" if family == "distilbert" else "hidden_act"
    ragged = make_ragged(family, hidden=160, **{activation: "relu"})
    ragged.config["layer_norm_type"] = "no_norm"
    # Few panels are ended in parts of rows by several threads, many panels each by one task.
    batches = (*BATCHES, sequences(*[64] * 14))
    for backend in ("reference", "cpu"):
        model = SparseModel.from_packed(ragged.packed(values=values), backend=backend)
        for texts in batches:
            check(model, ragged, texts, values)


def test_no_norm_reaches_the_norm_of_a_head(make_reference: Any, make_packed: Any) -> None:
    packed = make_packed(make_reference("bert", "ForMaskedLM"))
    with_norms = SparseModel.from_packed(packed)
    packed.config["layer_norm_type"] = "no_norm"
    model = SparseModel.from_packed(packed)
    ids = sequences(5)[0].unsqueeze(0)
    states = model(ids, output_hidden_states=True).hidden_states[-1]
    head = packed.tensors
    transform = "cls.predictions.transform"
    x = F.gelu(F.linear(states, head[f"{transform}.dense.weight"], head[f"{transform}.dense.bias"]))
    x = x * head[f"{transform}.LayerNorm.weight"] + head[f"{transform}.LayerNorm.bias"]
    words = head["bert.embeddings.word_embeddings.weight"]
    expected = F.linear(x, words, head["cls.predictions.bias"])
    assert (model(ids).logits - expected).abs().max() < 1e-4
    assert (with_norms(ids).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_hidden_states_of_layers_that_pass_on(backend: str, make_ragged: Any) -> None:
    ragged = make_ragged("bert")
    model = SparseModel.from_packed(ragged.packed(), backend=backend)
    states = model(sequences(9)[0].unsqueeze(0), output_hidden_states=True).hidden_states
    assert len(states) == len(ragged.plan) + 1
    assert torch.equal(states[3], states[4])  # the layer without both halves
    assert not torch.equal(states[2], states[3])


def test_saved_and_moved(make_ragged: Any, tmp_path: Any) -> None:
    ragged = make_ragged("bert", hidden=48, kept_hidden=41)
    save(ragged.packed(values="int8"), tmp_path / "packed")
    packed = load(tmp_path / "packed")
    assert packed.head_size == 12
    assert packed.absent == tuple(sorted(ragged.packed().absent)) and len(packed.absent) == 4
    model = SparseModel.from_pretrained(tmp_path / "packed")
    batch = padded(sequences(9, 4), 0)
    expected = SparseModel.from_packed(ragged.packed(values="int8"))(**batch).last_hidden_state
    assert torch.equal(model(**batch).last_hidden_state, expected)
    half = model.to(torch.bfloat16)(**batch).last_hidden_state
    assert half.dtype == torch.bfloat16 and (half - expected).abs().max() < 0.5
