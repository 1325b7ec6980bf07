"""Targets of models that lose heads and neurons: what is predicted is what is packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
)

import sparse_runtime as sr
from sparse_runtime import SparseModel
from sparse_runtime.compress.oneshot.channels import Channels, live_channels
from sparse_runtime.compress.oneshot.plans import SearchPlan
from sparse_runtime.compress.oneshot.prune import prune
from sparse_runtime.compress.oneshot.solvers import SolvedLinear
from sparse_runtime.ops.native import unavailable
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.tools import layer_latency, targets
from sparse_runtime.tools.layer_latency import Shape, pack_model
from sparse_runtime.tools.targets import prune_to_target

WORDS = [f"word{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % 50] for j in range(3 + i % 9)) for i in range(24)]
needs_extension = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def bert() -> nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=60,
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=2,
        )
    )


def distilbert() -> nn.Module:
    return DistilBertModel(
        DistilBertConfig(vocab_size=60, n_layers=2, dim=32, hidden_dim=48, n_heads=2)
    )


def mpnet() -> nn.Module:
    return MPNetModel(
        MPNetConfig(
            vocab_size=60,
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=2,
        )
    )


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("make", [bert, distilbert])
@pytest.mark.parametrize("formats", [[], ["dense int8", "unstructured@0.8 int8"]])
def test_the_predicted_size_is_the_packed_one(
    make: Callable[[], nn.Module], formats: list[str], tmp_path: Path
) -> None:
    model = made(make)
    report = prune_to_target(
        model,
        tmp_path / "out",
        target="size=0.75x",
        formats=formats,
        calibration=TEXTS,
        tokenizer=tokenizer(),
        plan=SearchPlan(keep_flops=0.6, progress=False),
        progress=False,
    )
    found = sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    assert found.cropped
    packed = sum(layer.bytes for layer in found.layers)
    assert packed == report.allocation.cost <= report.allocation.budget
    left = {layer.name: layer.shape for layer in found.layers}
    again = pack_model(model, report.allocation.by_layer()).linears
    assert {name: linear.packed.spec.shape for name, linear in again.items()} == left


@pytest.mark.parametrize("make", [bert, mpnet])
@pytest.mark.parametrize("scales", ["row", "tensor", "chunk:4", "group:8"])
def test_a_pattern_is_one_of_what_is_left(
    tmp_path: Path, make: Callable[[], nn.Module], scales: str
) -> None:
    model, plan = made(make), SearchPlan(keep_flops=0.6, progress=False)
    prune(
        model,
        tmp_path / "out",
        to="2:4",
        values="int8",
        scales=scales,
        calibration=TEXTS,
        tokenizer=tokenizer(),
        plan=plan,
        progress=False,
    )
    sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed").packed.linears
    assert {one.packed.spec.values.scales for one in packed.values()} == {scales}
    assert plan.removed is not None
    removed, live = plan.removed.layers, live_channels(model)
    assert any(not units.heads.all() for units in removed)
    for layer, units in zip(sr.compress.layers(model), removed, strict=True):
        for part, name in layer.names.items():
            one, weight = packed[name].packed, layer.linears[part].weight.detach()
            assert one.dequantize().count_nonzero() == weight.count_nonzero() > 0
            # Every head of MPNet has its own column of distances: none goes, and zeros stay zeros.
            whole = make is mpnet and not part.startswith("ffn")
            kept = units.neurons if part.startswith("ffn") else units.heads
            rows = part not in ("attention_output", "ffn_out")
            channels = weight.shape[0 if rows else 1]
            at = kept.repeat_interleave(channels // len(kept))
            assert not (weight[~at] if rows else weight[:, ~at]).any()
            if scales in ("chunk:4", "group:8"):
                # Solved at full size, since rows and columns that go are counted.
                assert int((weight != 0).unflatten(1, (-1, 4)).sum(-1).max()) == 2
            elif not whole:
                assert one.spec.shape[0 if rows else 1] == int(at.sum())
                assert str(one.spec.structure) == "2:4"
            else:
                assert name not in live and one.spec.shape == tuple(weight.shape)
                assert torch.equal(one.dequantize(), weight)


@needs_extension
def test_what_is_left_computes_what_the_whole_does() -> None:
    model = made(bert)
    before = live_channels(model)
    inputs = torch.randint(5, 50, (2, 9))
    batches = [{"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}]
    plan = SearchPlan(keep_flops=0.6, progress=False)
    plan(model, batches, {})
    live = live_channels(model)
    assert before == {} and live
    formats = dict.fromkeys(sr.compress.encoder_linears(model), targets.REFERENCE)
    with torch.no_grad():
        expected = model(inputs)[0]
    found = SparseModel.from_packed(pack_model(model, formats), backend="cpu")(inputs)[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05  # weights, inputs in 8 bits


def test_solved_channels_are_put_back() -> None:
    channels = Channels(torch.tensor([0, 2]), torch.tensor([1, 3]))
    weight = torch.arange(12.0).view(3, 4)
    assert torch.equal(channels.of(weight), torch.tensor([[1.0, 3.0], [9.0, 11.0]]))
    solved = SolvedLinear(
        channels.of(weight),
        torch.ones(2, 2, dtype=torch.bool),
        torch.tensor([0.5, 0.25]),
        torch.tensor([1.0, 2.0]),
        0.1,
    )
    whole = channels.spread(solved, weight.shape, tensor_scale=False)
    assert torch.equal(channels.of(whole.weight), solved.weight)
    assert int(whole.mask.sum()) == int((whole.weight != 0).sum()) == 4
    assert whole.scales is not None and whole.bias_shift is not None
    assert whole.scales.tolist() == [0.5, 1.0, 0.25]
    assert whole.bias_shift.tolist() == [1.0, 0.0, 2.0]


def test_zero_heads_and_neurons_are_found() -> None:
    model = made(bert)
    layer = sr.compress.layers(model)[1]
    with torch.no_grad():
        for part in ("query", "key", "value"):
            layer.linears[part].weight[16:] = 0
            layer.linears[part].bias[16:] = 0
        for rows in ([4, 7, 9], [1]):
            layer.linears["ffn_in"].weight[rows] = 0
            layer.linears["ffn_in"].bias[rows] = 0
        layer.linears["ffn_out"].weight[:, 20:40] = 0  # unread, which may change
    live = live_channels(model)
    heads, neurons = torch.arange(16), [i for i in range(48) if i not in (1, 4, 7, 9)]
    read: dict[str, Tensor | None] = {n: c.columns for n, c in live.items()}
    write: dict[str, Tensor | None] = {n: c.rows for n, c in live.items()}
    for part in ("query", "key", "value"):
        assert torch.equal(write.pop(layer.names[part]), heads)  # type: ignore[arg-type]
    assert torch.equal(read[layer.names["attention_output"]], heads)  # type: ignore[arg-type]
    assert write[layer.names["ffn_in"]].tolist() == neurons  # type: ignore[union-attr]
    assert read[layer.names["ffn_out"]].tolist() == neurons  # type: ignore[union-attr]
    assert len(live) == 6


@needs_extension
def test_latency_is_that_of_inputs_as_they_are_quantized(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed: list[dict[str, ActivationSpec | None]] = []
    whole = layer_latency.pack_model

    def watched(*arguments: Any, **options: Any) -> Any:
        packed = whole(*arguments, **options)
        timed.append({n: x.packed.spec.activations for n, x in packed.linears.items()})
        return packed

    for module in (layer_latency, targets):
        monkeypatch.setattr(module, "pack_model", watched)
    report = prune_to_target(
        made(bert),
        tmp_path / "out",
        target="latency=2x",
        formats=["dense int8"],
        calibration=TEXTS,
        tokenizer=tokenizer(),
        ranges="mse",
        shape=Shape(1, 8),
        rounds=2,
        progress=False,
    )
    assert report.measured is not None
    assert all(spec and spec.scheme == "static" for specs in timed for spec in specs.values())
    sr.convert(tmp_path / "out", tmp_path / "packed", progress=False)
    packed = SparseModel.from_pretrained(tmp_path / "packed").packed.linears
    # The finished model first, then dense INT8.
    assert timed[-2] == {name: linear.packed.spec.activations for name, linear in packed.items()}
