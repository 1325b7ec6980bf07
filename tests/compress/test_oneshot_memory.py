"""What a walk holds of its texts: the bound of docs/compress/one_shot.md, and nothing left over."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress import Pattern, encoder_linears, layers
from sparse_runtime.compress.oneshot import calibrate, hidden_states, layerwise
from sparse_runtime.compress.oneshot.calibrate import Stage, walk
from sparse_runtime.compress.oneshot.factors import Factors
from sparse_runtime.compress.oneshot.hessian import InputStatistics
from sparse_runtime.compress.oneshot.hidden_states import TextBatch, advance, first_states
from sparse_runtime.compress.oneshot.layerwise import Format, compress_layers
from sparse_runtime.compress.oneshot.solvers import METHODS, Method
from sparse_runtime.spec import ValueSpec

MakeModel = Callable[[str], nn.Module]
FAMILIES = ["bert", "roberta", "electra", "mpnet", "distilbert"]
TEXTS, TOKENS, HIDDEN = 12, 24, 32
INT4 = ValueSpec.parse("int4")


def batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 60, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(TOKENS) < torch.arange(TEXTS).unsqueeze(1) % 9 + 16).long()
    return [
        {"input_ids": ids[start : start + 4], "attention_mask": mask[start : start + 4]}
        for start in range(0, TEXTS, 4)
    ]


def held(states: list[TextBatch]) -> int:
    """Bytes of the storages, each counted once."""
    tensors = [
        value
        for batch in states
        for value in (batch.hidden, batch.dense, batch.mask, *batch.args, *batch.kwargs.values())
        if isinstance(value, Tensor)
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_masks_are_bounded(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    first, second = (layer.module for layer in layers(model))
    state = TEXTS * TOKENS * HIDDEN * 4
    # The mask as it came and as attention takes it, up to 4 bytes a number; MPNet's distances.
    masks = TEXTS * TOKENS * (1 + 4)
    masks += 3 * 2 * TOKENS * TOKENS * 4 if family == "mpnet" else 0
    with torch.no_grad():
        states = first_states(model, first, batches(), follow_dense=True)
        assert state <= held(states) <= state + masks  # one tensor for both
        advance(states, first, first)
        assert held(states) <= state + masks
        advance(states, second, make_changed(second))
        assert 2 * state <= held(states) <= 2 * state + masks


def make_changed(module: nn.Module) -> nn.Module:
    changed = copy.deepcopy(module)
    with torch.no_grad():
        next(changed.parameters()).add_(0.1)
    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_held_once_change_nothing(
    make_model: MakeModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(family)
    first = layers(model)[0].module
    with torch.no_grad():
        slim = first_states(model, first, batches(), follow_dense=False)
        monkeypatch.setattr(hidden_states, "_slim", lambda value: value)
        whole = first_states(model, first, batches(), follow_dense=False)
        assert held(slim) < held(whole)
        for one, other in zip(slim, whole, strict=True):
            assert torch.equal(one.run(first, one.hidden), other.run(first, other.hidden))


@pytest.mark.parametrize("follow_dense", [False, True])
def test_no_layer_s_outputs_outlive_the_next(
    make_model: MakeModel, follow_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[weakref.ref[Tensor]] = []
    run = TextBatch.run

    def recorded(self: TextBatch, module: nn.Module, hidden: Tensor) -> Tensor:
        output = run(self, module, hidden)
        outputs.append(weakref.ref(output))
        return output

    monkeypatch.setattr(TextBatch, "run", recorded)
    alive = []

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        next(iter(stage.linears.values())).weight.data *= 0.9
        alive.append(sum(reference() is not None for reference in outputs))

    walk(make_model("bert"), batches(), visit, follow_dense=follow_dense, progress=False)
    # Nothing has run before the first of two layers; then three batches, once or twice.
    assert alive == [0] * 4 + [6 if follow_dense else 3] * 4


def test_layers_that_nothing_is_asked_of_are_passed_through(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[Any] = []
    collect = calibrate._collect

    def recorded(stage: Stage, *rest: Any) -> None:
        collected.append(stage.layer.index)
        collect(stage, *rest)

    monkeypatch.setattr(calibrate, "_collect", recorded)
    model = make_model("bert")
    name = layers(model)[1].names["ffn_in"]
    before = {n: linear.weight.clone() for n, linear in encoder_linears(model).items()}
    formats = {name: Format(Pattern.parse("2:4"), None)}
    result = compress_layers(model, batches(), formats, progress=False)
    assert [row.name for row in result.rows] == [name]
    assert set(collected) == {1}
    for other, linear in encoder_linears(model).items():
        assert torch.equal(linear.weight, before[other]) == (other != name)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "exact_obs"])
@pytest.mark.parametrize("crop", [False, True])
def test_decompositions_are_bounded(
    make_model: MakeModel, method: Method, crop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[float, float]] = []
    visit = layerwise._Run.visit

    def watched(self: Any, stage: Stage, statistics: InputStatistics) -> None:
        visit(self, stage, statistics)
        square = statistics.features**2 * 8
        parts = list(statistics._parts.values())
        factors = [f for one in (statistics, *parts) for f in one._factors.values()]
        few = sum(part.gram.untyped_storage().nbytes() for part in parts)
        kept.append((sum(map(factor_bytes, factors)) / square, few / square))

    monkeypatch.setattr(layerwise._Run, "visit", watched)
    model = make_model("bert")
    if crop:
        with torch.no_grad():
            for layer in layers(model):
                layer.linears["ffn_in"].weight[:8] = 0
                layer.linears["ffn_in"].bias[:8] = 0
    formats = dict.fromkeys(encoder_linears(model), Format(Pattern.parse("2:4"), INT4))
    compress_layers(model, batches(), formats, method=method, crop=crop, progress=False)
    most = {"alps": 4, "obs": 3.5}.get(method, 2)
    # Two numbers a row besides: eigenvalues.
    assert len(kept) == 8 and 0.5 < max(factors for factors, _ in kept) < most + 0.02
    assert max(few for _, few in kept) <= 1 and any(few > 0 for _, few in kept) == crop


def factor_bytes(factors: Factors) -> int:
    tensors = [factors.hessian, vars(factors).get("lower"), *factors._inverse.values()]
    tensors += [tensor for pair in factors._spectrum.values() for tensor in pair]
    return sum(t.untyped_storage().nbytes() for t in tensors if t is not None)


def test_cropped_readers_share_their_decompositions() -> None:
    statistics = InputStatistics(8)
    statistics.add(torch.randn(64, 8), missing={"a": torch.randn(64, 3), "b": torch.randn(64, 3)})
    columns = torch.tensor([0, 2, 3, 7])
    one, other = (statistics.narrowed(name, None, columns.clone()) for name in ("a", "b"))
    assert one.factors(0.01) is other.factors(0.01) and one.gram is other.gram
    assert torch.equal(one.gram, statistics.gram[columns][:, columns])
    assert one.cross.keys() == {"a"} and other.cross.keys() == {"b"}
    statistics.add(torch.randn(64, 8))
    later = statistics.narrowed("a", None, columns)
    assert later.count == 128 and not torch.equal(later.gram, one.gram)
