"""Channels between two layers in another order: outputs of the one, inputs of the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..formats.reorder import (
    keeps_columns_together,
    keeps_rows_together,
    reorder_columns,
    reorder_rows,
)
from .types import LinearWeight


def can_reorder(maker: LinearWeight, reader: LinearWeight) -> bool:
    """Whether ``maker``'s rows and ``reader``'s columns may stand anywhere."""
    rows, columns = maker.packed.spec, reader.packed.spec
    return not keeps_rows_together(rows) and not keeps_columns_together(columns)


def reorder(
    maker: LinearWeight, reader: LinearWeight, order: Tensor
) -> tuple[LinearWeight, LinearWeight]:
    """Both layers, with the channels between them in ``order``.

    What ``reader`` gives stays the same, where all that happens to a channel between the two is
    the same for every channel: integers to the last bit, floats but for the order of their sums.

    Args:
        maker: its last outputs become the channels.
        reader: its inputs are the channels.
        order: int64 [channels].
    """
    rows = maker.packed.spec.shape[0]
    first = rows - len(order)  # a layer may make others before them
    outputs = torch.cat((torch.arange(first), first + order))
    bias = None if maker.bias is None else maker.bias[outputs.to(maker.bias.device)]
    packed = reorder_rows(maker.packed, outputs)
    read = reorder_columns(reader.packed, order)
    return replace(maker, packed=packed, bias=bias), replace(reader, packed=read)
