"""Rows and columns of a packed weight in another order."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..spec import LinearSpec
from .base import PackedWeight
from .packing import pack


def keeps_rows_together(spec: LinearSpec) -> bool:
    """Whether rows belong to each other, so that they stay where they are: blocks of several rows,
    and scales of several but not all."""
    tall = spec.structure.kind == "block" and spec.structure.rows > 1
    return tall or spec.values.granularity == "chunk"


def keeps_columns_together(spec: LinearSpec) -> bool:
    """The same of columns: patterns along a row, and scales of groups."""
    return spec.structure.kind in ("nm", "block") or spec.values.granularity == "group"


def reorder_rows(packed: PackedWeight, order: Tensor) -> PackedWeight:
    """The weight whose row ``i`` is row ``order[i]``.

    Args:
        packed: a weight [out, in].
        order: int64 [out], each row once.

    Raises:
        ValueError: its rows belong together (:func:`keeps_rows_together`).
    """
    if keeps_rows_together(packed.spec):
        raise ValueError(
            f"rows of a {packed.spec.structure} weight with scales {packed.spec.values.scales!r}: "
            "expected rows of their own, these belong together"
        )
    moved = packed
    if packed.spec.values.granularity != "tensor":
        # One a row, or a row's groups side by side.
        moved = replace(
            packed,
            scales=_by_row(packed.scales, order),
            zero_points=_by_row(packed.zero_points, order),
        )
    return pack(packed.unpack()[order], packed.spec, moved.scales, moved.zero_points)


def reorder_columns(packed: PackedWeight, order: Tensor) -> PackedWeight:
    """The weight whose column ``i`` is column ``order[i]``.

    Args:
        packed: a weight [out, in].
        order: int64 [in], each column once.

    Raises:
        ValueError: its columns belong together (:func:`keeps_columns_together`).
    """
    if keeps_columns_together(packed.spec):
        raise ValueError(
            f"columns of a {packed.spec.structure} weight with scales "
            f"{packed.spec.values.scales!r}: expected columns of their own, these belong together"
        )
    return pack(packed.unpack()[:, order], packed.spec, packed.scales, packed.zero_points)


def _by_row(numbers: Tensor | None, order: Tensor) -> Tensor | None:
    return None if numbers is None else numbers.view(len(order), -1)[order].flatten()
