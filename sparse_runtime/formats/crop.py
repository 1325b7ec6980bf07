"""Heads and neurons that add nothing: which they are, and what is left without them.

A unit is some consecutive rows of one layer, its producer, whose outputs reach only the same
columns of the next, its reader: a neuron is a row of the first feed-forward matrix and a column of
the second; a head is ``head_size`` rows of the values and columns of the attention's output. The
weights of a softmax sum to 1, so a head whose values do not depend on the token gives the values'
bias, as a neuron whose input weights are zero gives ``activation(bias)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

LEAST_NEURONS = 1 / 16
"""Share of a layer's neurons that ``convert`` removes at least by itself: fewer save no time, for
kernels work in tiles, and cost a model that programs of config.json's sizes open."""


@dataclass(frozen=True)
class Units:
    """What is known of each unit; bool [units] each.

    Attributes:
        zero: its outputs are 0, whatever the input.
        constant: its outputs do not depend on the input; includes ``zero``.
        unread: its reader's columns are zero.
    """

    zero: Tensor
    constant: Tensor
    unread: Tensor


def find_units(
    producer: Tensor,
    bias: Tensor | None,
    reader: Tensor,
    *,
    size: int = 1,
    activation: Activation | None = None,
) -> Units:
    """Examine a producer and its reader.

    Args:
        producer: float [units * size, in].
        bias: float [units * size], or None for zeros.
        reader: float [out, units * size].
        size: rows and columns of a unit.
        activation: what stands between the two, element by element; None changes nothing.

    Raises:
        ValueError: the two do not fit each other or ``size``.
    """
    rows = producer.shape[0]
    if size < 1 or rows % size or reader.shape[1] != rows:
        raise ValueError(
            f"reader: expected {rows} columns, one for each row of the producer, in units of "
            f"{size}; got {reader.shape[1]}"
        )
    constant = _all_zero(producer, size)
    value = _constant_of(producer, bias, activation)
    return Units(
        zero=constant & _all_zero(value.unsqueeze(1), size),
        constant=constant,
        unread=_all_zero(reader.t(), size),
    )


def removable(units: Units, *, group: int = 1, fold: bool = False) -> Tensor:
    """Which units may go; one group always stays, for a layer without any output has no form.

    Args:
        units: what is known of them.
        group: units that only go together, counted from the first.
        fold: whether constants may go, to be added to the reader's bias (:func:`folded_bias`).

    Returns:
        bool [units].
    """
    gone = units.unread | (units.constant if fold else units.zero)
    count = len(gone)
    whole = torch.cat([gone, gone.new_ones(-count % group)]).view(-1, group).all(1)
    if bool(whole.all()):
        whole[0] = False
    return whole.repeat_interleave(group)[:count]


def positions(units: Tensor, size: int) -> Tensor:
    """int64: the rows (columns) of the units where bool [units] is True."""
    return units.repeat_interleave(size).nonzero().squeeze(1)


def folded_bias(
    reader: Tensor,
    reader_bias: Tensor | None,
    producer: Tensor,
    bias: Tensor | None,
    gone: Tensor,
    activation: Activation | None = None,
) -> Tensor:
    """The reader's bias with what the columns ``gone`` (int64) used to add, summed in float64.

    Returns:
        float32 [out].
    """
    value = _constant_of(producer, bias, activation)[gone]
    added = reader[:, gone].double() @ value
    return (added if reader_bias is None else reader_bias.double() + added).float()


def _constant_of(producer: Tensor, bias: Tensor | None, activation: Activation | None) -> Tensor:
    """float64 [rows]: the output of each row, if its weights are zero."""
    value = producer.new_zeros(producer.shape[0]) if bias is None else bias
    value = value.double()
    return value if activation is None else activation(value)


def _all_zero(matrix: Tensor, size: int) -> Tensor:
    """bool [units]: whether each run of ``size`` rows holds zeros only."""
    return ~(matrix != 0).any(1).view(-1, size).any(1)
