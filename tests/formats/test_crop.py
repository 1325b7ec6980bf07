"""Which heads and neurons add nothing, and that leaving them out changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparse_runtime.formats.crop import find_units, folded_bias, positions, removable


def neurons() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six neurons: 0 whole, 1 zero, 2 constant, 3 unread, 4 zero weights but unread, 5 a tiny."""
    torch.manual_seed(0)
    inner, bias, outer = torch.randn(6, 4), torch.randn(6), torch.randn(3, 6)
    inner[1], bias[1] = 0, 0
    inner[2] = 0
    outer[:, 3] = 0
    inner[4], outer[:, 4] = 0, 0
    inner[5], bias[5] = 0, 0
    inner[5, 3] = 1e-40  # a subnormal number is no zero
    return inner, bias, outer


def test_every_kind_of_neuron_is_told_apart() -> None:
    units = find_units(*neurons(), activation=F.gelu)
    assert units.zero.tolist() == [False, True, False, False, False, False]
    assert units.constant.tolist() == [False, True, True, False, True, False]
    assert units.unread.tolist() == [False, False, False, True, True, False]
    assert removable(units).nonzero().squeeze(1).tolist() == [1, 3, 4]
    assert removable(units, fold=True).nonzero().squeeze(1).tolist() == [1, 2, 3, 4]


def test_zero_depends_on_the_activation() -> None:
    inner, bias, outer = torch.zeros(2, 4), torch.tensor([-1.0, 0.0]), torch.ones(3, 2)
    # ReLU makes 0 of a negative bias, GELU does not; a sigmoid makes 1/2 of 0.
    assert find_units(inner, bias, outer, activation=F.relu).zero.tolist() == [True, True]
    assert find_units(inner, bias, outer, activation=F.gelu).zero.tolist() == [False, True]
    assert find_units(inner, None, outer, activation=torch.sigmoid).zero.tolist() == [False, False]


def test_a_head_is_zero_with_its_bias_and_unread_with_all_its_columns() -> None:
    torch.manual_seed(0)
    value, bias, out = torch.randn(12, 5), torch.randn(12), torch.randn(5, 12)
    value[0:3], bias[0:3] = 0, 0
    value[3:6] = 0  # a bias is left: every token's context is this bias
    out[:, 6:9] = 0
    out[:, 9:11] = 0  # one column of the last head is read
    units = find_units(value, bias, out, size=3)
    assert units.zero.tolist() == [True, False, False, False]
    assert units.constant.tolist() == [True, True, False, False]
    assert units.unread.tolist() == [False, False, True, False]
    assert positions(removable(units), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_groups_go_together_and_one_always_stays() -> None:
    units = find_units(torch.zeros(7, 2), None, torch.ones(2, 7))
    assert removable(units).tolist() == [False] + [True] * 6
    assert removable(units, group=3).tolist() == [False] * 3 + [True] * 4
    assert removable(units, group=9).tolist() == [False] * 7
    weight = torch.ones(7, 2)
    weight[[0, 1, 2, 6]] = 0  # units 0 and 1 are a pair, 2 has a neighbour, 6 is the shorter rest
    units = find_units(weight, None, torch.ones(2, 7))
    assert removable(units, group=2).nonzero().squeeze(1).tolist() == [0, 1, 6]


def test_folded_constants_are_what_the_columns_added() -> None:
    inner, bias, outer = neurons()
    x, out_bias = torch.randn(9, 4), torch.randn(3)
    whole = F.linear(F.gelu(F.linear(x, inner, bias)), outer, out_bias)
    units = find_units(inner, bias, outer, activation=F.gelu)
    gone = removable(units, fold=True)
    kept = positions(~gone, 1)
    folded = folded_bias(outer, out_bias, inner, bias, positions(gone, 1), F.gelu)
    assert folded.dtype == torch.float32
    left = F.linear(F.gelu(F.linear(x, inner[kept], bias[kept])), outer[:, kept], folded)
    # Unread and zero neurons add nothing; the constant one what is in the bias now.
    expected = out_bias + outer[:, 2] * F.gelu(bias[2])
    assert (folded - expected).abs().max() < 1e-6
    assert (left - whole).abs().max() < 1e-5
    without_bias = folded_bias(outer, None, inner, bias, positions(gone, 1), F.gelu)
    assert (without_bias + out_bias - folded).abs().max() < 1e-6


def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 6 columns, .* units of 4; got 6"):
        find_units(torch.zeros(6, 2), None, torch.zeros(2, 6), size=4)
    with pytest.raises(ValueError, match=r"expected 6 columns, .* units of 3; got 9"):
        find_units(torch.zeros(6, 2), None, torch.zeros(2, 9), size=3)
