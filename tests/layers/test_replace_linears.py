"""replace_linears on plain modules and on transformers models."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparse_runtime as sr


class Block(nn.Module):
    """A layer in a list, one in a Sequential, one used twice, one tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.inner = nn.Sequential(nn.Linear(16, 24), nn.GELU())
        self.outer = nn.ModuleList([nn.Linear(24, 16, bias=False)])
        self.first = self.second = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.outer[0](self.inner(self.embed(ids)))
        return self.head(self.second(self.first(x)))


def names_of(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    named = model.named_modules(remove_duplicate=False)
    return {name for name, module in named if type(module) is kind}


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_every_plain_linear_is_replaced_in_place(caplog: pytest.LogCaptureFixture) -> None:
    model = Block().eval()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(ids)
        with caplog.at_level(logging.INFO, logger="sparse_runtime"):
            assert sr.replace_linears(model) is model
        y = model(ids)
    assert names_of(model, sr.Linear) == {"inner.0", "outer.0", "first", "second"}
    assert names_of(model, nn.Linear) == {"head"}
    assert model.first is model.second
    assert model.head.weight is model.embed.weight
    assert torch.nn.functional.cosine_similarity(y, expected, dim=-1).min() > 0.999
    assert "head: left as it is: its weight is tied to embed.weight" in messages(caplog)
    assert messages(caplog)[-1] == "replaced 3 of 4 nn.Linear layers"
    assert model.inner[0].explain().startswith("inner.0: [24, 16] dense int8")


def test_strings_reach_every_layer() -> None:
    model = sr.replace_linears(
        Block(),
        structure="2:4",
        values="int4",
        scales="tensor",
        activations="none",
        backend="reference",
    )
    spec = model.inner[0].spec
    assert (str(spec.structure), spec.values.dtype, spec.values.scales) == ("2:4", "int4", "tensor")
    assert spec.activations is None
    assert model.inner[0].prepared.candidate == "reference"
    pruned = sr.replace_linears(Block(), prune="unstructured@0.5")
    assert str(pruned.first.spec.structure) == "unstructured"
    assert int((pruned.first.weight != 0).sum()) == 128


def test_the_filter_decides_alone() -> None:
    model = Block()
    seen: list[str] = []

    def wanted(module: nn.Module, name: str) -> bool:
        assert isinstance(module, nn.Linear)
        seen.append(name)
        return name in ("first", "head")

    sr.replace_linears(model, filter_fn=wanted)
    assert seen == ["inner.0", "outer.0", "first", "head"]
    assert names_of(model, sr.Linear) == {"first", "second", "head"}
    # The tied head was asked for: the embedding keeps the weight they shared.
    assert torch.allclose(model.head.weight, model.embed.weight, atol=0.05)


def test_a_filter_that_takes_nothing_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Block()
    before = [id(module) for module in model.modules()]
    sr.replace_linears(model, filter_fn=lambda module, name: False)
    assert [id(module) for module in model.modules()] == before
    assert caplog.records[-1].levelno == logging.WARNING
    assert messages(caplog)[-1] == "replaced 0 of 4 nn.Linear layers"


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Named(nn.Linear):
    """A subclass that is nothing more than a linear layer."""


def test_the_default_filter_leaves_what_is_more_than_a_linear(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.ModuleDict(
        {
            "own": OwnForward(8, 8),
            "named": Named(8, 8),
            "attention": nn.MultiheadAttention(8, 2),
            "packed": sr.Linear.from_dense(nn.Linear(8, 8)),
        }
    )
    packed = model["packed"]
    with caplog.at_level(logging.INFO, logger="sparse_runtime"):
        sr.replace_linears(model)
    assert names_of(model, sr.Linear) == {"named", "packed"}
    assert model["packed"] is packed
    logged = "\n".join(messages(caplog))
    assert "own: left as it is: OwnForward has a forward of its own" in logged
    assert "attention.out_proj: left as it is: nn.MultiheadAttention reads its weight" in logged


def test_a_forward_set_on_the_layer_alone_is_one_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    plain = model[0].forward
    model[0].forward = lambda input: plain(input) * 3  # as accelerate's hooks do
    sr.replace_linears(model)
    assert names_of(model, sr.Linear) == set()
    assert "replaced 0 of 1 nn.Linear layers; 0: Linear has a forward of its own" in caplog.text
    with pytest.raises(TypeError, match="0: Linear has a forward of its own, set on this layer"):
        sr.replace_linears(model, filter_fn=lambda module, name: True)


def test_parameters_are_tied_where_their_bytes_are_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flat = torch.randn(8 * 8 + 8)
    model = nn.ModuleDict({"norm": nn.LayerNorm(8), "linear": nn.Linear(8, 8)}).eval()
    model["norm"].weight = nn.Parameter(flat[64:])
    model["linear"].weight = nn.Parameter(flat[:64].view(8, 8))  # neighbours in one buffer
    sr.replace_linears(model)
    assert names_of(model, sr.Linear) == {"linear"}
    tied = nn.ModuleDict({"norm": nn.LayerNorm(8), "linear": nn.Linear(8, 8)}).eval()
    tied["norm"].weight = nn.Parameter(flat[56:64])
    tied["linear"].weight = nn.Parameter(flat[:64].view(8, 8))
    sr.replace_linears(tied)
    assert names_of(tied, sr.Linear) == set()
    assert messages(caplog)[-1] == (
        "replaced 0 of 1 nn.Linear layers; linear: its weight is tied to norm.weight"
    )


def test_layers_that_a_fast_path_reads_around_are_left_until_it_is_off() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    x = torch.ones(2, 3, 16)
    with torch.inference_mode():
        expected = layer(x)
        assert names_of(sr.replace_linears(layer), sr.Linear) == set()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            sr.replace_linears(layer)
            assert names_of(layer, sr.Linear) == {"linear1", "linear2"}
            calls: list[nn.Module] = []
            layer.linear1.register_forward_hook(lambda module, *_: calls.append(module))
            assert torch.allclose(layer(x), expected, atol=0.05)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert calls == [layer.linear1]


def spoil_with_nan(model: Block) -> None:
    model.first.weight.data[0, 0] = torch.nan


def spoil_with_a_mask(model: Block) -> None:
    prune.l1_unstructured(model.first, "weight", 0.5)


def spoil_with_the_meta_device(model: Block) -> None:
    model.first.to("meta")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_with_nan, ValueError, r"first: weight\[0, 0\] is nan"),
        (spoil_with_a_mask, TypeError, "first: Linear keeps weight_mask, weight_orig"),
        (spoil_with_the_meta_device, TypeError, "first: the weight has no values yet"),
    ],
)
def test_one_layer_refused_leaves_the_model_as_it_was(
    spoil: Callable[[Block], None], error: type[Exception], message: str
) -> None:
    model = Block()
    spoil(model)
    before = [id(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        sr.replace_linears(model)
    assert [id(module) for module in model.modules()] == before


def test_bad_arguments_are_refused_first() -> None:
    with pytest.raises(TypeError, match=r"itself an nn\.Linear.*Linear\.from_dense"):
        sr.replace_linears(nn.Linear(4, 4))
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got list"):
        sr.replace_linears([nn.Linear(4, 4)])  # type: ignore[type-var]
    model = Block()
    with pytest.raises(TypeError, match=r"filter_fn: expected None or a function .*, got '0'"):
        sr.replace_linears(model, filter_fn="0")  # type: ignore[arg-type]
    for strings in ({"structure": "sparse"}, {"values": "int3"}, {"backend": "gpu"}):
        with pytest.raises(ValueError, match=f"{next(iter(strings))}"):
            sr.replace_linears(model, **strings)  # type: ignore[arg-type]
    assert names_of(model, sr.Linear) == set()


def test_modes_are_kept_and_training_mode_raises() -> None:
    model = Block()
    model.first.eval()
    sr.replace_linears(model)
    assert model.inner[0].training
    assert not model.first.training
    with pytest.raises(RuntimeError, match=r"inner\.0: .* in training mode; call eval\(\)"):
        model(torch.arange(3))
    with torch.inference_mode():
        assert model.eval()(torch.arange(3)).shape == (3, 30)


def test_hooks_and_their_handles_survive() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    handle = model[0].register_forward_hook(
        lambda module, args, kwargs, output: calls.append(type(module).__name__), with_kwargs=True
    )
    sr.replace_linears(model)
    model(torch.ones(1, 8))
    assert calls == ["pre", "Linear"]
    handle.remove()
    model(torch.ones(1, 8))
    assert calls == ["pre", "Linear", "pre"]
    assert isinstance(model[0], sr.Linear)


def test_the_old_layer_has_hooks_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    old, calls = model[0], []
    old.register_forward_hook(lambda module, *_: calls.append("both"))
    sr.replace_linears(model)
    model[0].register_forward_hook(lambda module, *_: calls.append("new"))
    old(torch.ones(1, 8))
    model(torch.ones(1, 8))
    assert calls == ["both", "both", "new"]


def test_hooks_that_are_dropped_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    model[0].register_full_backward_hook(lambda *_: None)
    model[0].register_state_dict_pre_hook(lambda *_: None)
    sr.replace_linears(model)
    assert messages(caplog) == [
        "0: its backward_hooks, state_dict_pre_hooks do not go over to the packed layer"
    ]


def test_state_dict_of_a_whole_model_round_trips() -> None:
    source = sr.replace_linears(Block().eval(), structure="2:4")
    target = sr.replace_linears(Block().eval(), structure="2:4")
    target.load_state_dict(source.state_dict())
    ids = torch.arange(10)
    with torch.no_grad():
        assert torch.equal(source(ids), target(ids))
        assert torch.equal(copy.deepcopy(source)(ids), source(ids))


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    return BertForMaskedLM(config).eval()


# Floats are exact up to rounding; int8 is not, and a random model shows it most.
@pytest.mark.parametrize(("values", "limit"), [("fp32", 1e-6), ("int8", 0.05)])
def test_a_transformers_model_runs_on_packed_layers(
    bert: nn.Module, values: str, limit: float
) -> None:
    model = copy.deepcopy(bert)
    ids = torch.arange(14).view(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask).logits
        sr.replace_linears(model, values=values)
        logits = model(ids, attention_mask=mask).logits
    # Six linears a layer and the head's dense one; the decoder is tied to the word embeddings.
    assert len(names_of(model, sr.Linear)) == 2 * 6 + 1
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    error = torch.linalg.vector_norm(logits - expected) / torch.linalg.vector_norm(expected)
    assert error < limit
    with pytest.raises(RuntimeError, match=r"query: .*torch\.inference_mode\(\)"):
        model(ids, attention_mask=mask)  # its embeddings require grad
