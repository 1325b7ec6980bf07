"""Masked weights are zero through training, and baking leaves plain layers with plain zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparse_runtime.compress import (
    Pattern,
    attach_masks,
    bake,
    encoder_linears,
    lock_masks,
    masks_of,
    sparsity,
)
from sparse_runtime.compress.masks import original_weight, share_of_zeros, transforms

IDS = torch.arange(12).view(2, 6)


def test_zeros_of_layers_are_weighed_by_their_size() -> None:
    small, large = nn.Linear(2, 2), nn.Linear(4, 3)
    attach_masks({"small": small}, {"small": torch.zeros(2, 2, dtype=torch.bool)})
    assert share_of_zeros({"small": small, "large": large}) == 4 / 16


def test_masked_weights_stay_zero_at_every_step_of_adam(make_model) -> None:
    model = make_model("bert").train()
    linears = encoder_linears(model)
    pattern = Pattern.parse("2:4")
    masks = {name: pattern.mask(linear.weight.detach().abs()) for name, linear in linears.items()}
    attach_masks(linears, masks)
    # Weight decay and momentum move what is below the mask, and must not show.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS).logits.square().sum().backward()
        for name, linear in linears.items():
            assert not original_weight(linear).grad[~masks[name]].any()
        optimizer.step()
        for name, linear in linears.items():
            assert not linear.weight[~masks[name]].any()
            assert linear.weight[masks[name]].all()
    found = masks_of(model)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_baking_changes_no_output_and_leaves_plain_linears(make_model) -> None:
    model = make_model("bert")
    linears = encoder_linears(model)
    attached = attach_masks(linears)
    assert all(sparsity(mask.mask) == 0 for mask in attached.values())
    pattern = Pattern.parse("unstructured@0.75")
    for name, mask in attached.items():
        mask.update(pattern.mask(linears[name].weight.detach().abs()))
    before, keys = model(input_ids=IDS).logits, set(make_model("bert").state_dict())
    copied = bake(copy.deepcopy(model))
    assert torch.equal(copied(input_ids=IDS).logits, before)
    assert set(copied.state_dict()) == keys
    for linear in encoder_linears(copied).values():
        assert type(linear) is nn.Linear
        assert isinstance(linear.weight, nn.Parameter)
        assert sparsity(linear.weight) == 0.75
        # No -0, which some readers would take for a value.
        assert not torch.signbit(linear.weight[linear.weight == 0]).any()
    # The deep copy was baked, and not the model.
    assert all(transforms(linear) for linear in linears.values())


def test_negative_zeros_become_zeros() -> None:
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.fill_(-0.0)
    attach_masks({"a": linear})
    bake(linear)
    assert not torch.signbit(linear.weight).any()


def test_locking_keeps_the_pattern_that_the_zeros_show(make_model) -> None:
    model = make_model("bert")
    pattern = Pattern.parse("block:1x4@0.5")
    for linear in encoder_linears(model).values():
        with torch.no_grad():
            linear.weight *= pattern.mask(linear.weight.abs())
    locked = lock_masks(model)
    assert all(sparsity(mask.mask) == 0.5 for mask in locked.values())
    assert "bert.pooler.dense" not in masks_of(model)
    with pytest.raises(ValueError, match="parametrizations already"):
        lock_masks(model)


def test_masks_of_the_wrong_shape_or_none_are_refused() -> None:
    linear = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"a: expected a mask \[2, 4\], got \[4, 2\]"):
        attach_masks({"a": linear}, {"a": torch.ones(4, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="a: expected a mask for every layer"):
        attach_masks({"a": linear}, {})
    mask = attach_masks({"a": linear})["a"]
    with pytest.raises(ValueError, match=r"mask: expected \[2, 4\], got \[2, 3\]"):
        mask.update(torch.ones(2, 3, dtype=torch.bool))


def test_a_foreign_parametrization_is_named() -> None:
    linear = nn.Linear(4, 2)
    attach_masks({"a": linear})
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    with pytest.raises(ValueError, match="Identity of another library"):
        bake(nn.Sequential(linear))


def test_masks_travel_in_the_state_dict() -> None:
    one, other = nn.Linear(4, 2), nn.Linear(4, 2)
    attach_masks({"a": one}, {"a": torch.eye(2, 4, dtype=torch.bool)})
    attach_masks({"a": other})
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.weight, one.weight)
    assert torch.equal(masks_of(other)[""], torch.eye(2, 4, dtype=torch.bool))
