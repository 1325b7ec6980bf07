"""How many tokens the CPU backend takes through the layers at a time.

What a layer's stages hand to each other should stay in the caches, and the layer's weights should
be read for as many tokens as that allows (docs/kernels/encoder.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Sequence

from .calibration import AMX_LAYOUTS, FLOAT_LAYOUTS
from .cpu_panels import PanelLinear
from .types import PreparedLinear

PANEL_TOKENS = 64

_CACHED_BYTES = 4 << 20
"""Of what a layer makes, for each thread: its L2 cache, and its part of an L3 cache."""

_MOST_BYTES = 128 << 20
"""The same for all threads, if that leaves each a panel: so much memory is kept between passes."""

_LEAST_TOKEN_BYTES = 1024
"""A narrower token counts as this many."""

_LEAST_PANELS_EACH = 2
_LEAST_PANELS = 4
"""Fewer panels would read the weights too often from beyond the L2 cache."""

_LEAST_PANELS_TILED = 16
"""With AMX, whose tiles of weights serve several panels; shorter parts have not been measured."""


def part_tokens(layers: Sequence[Sequence[PreparedLinear]], threads: int) -> int:
    """About how many tokens should run together: whole panels, as many for each thread.

    Args:
        layers: the linears of each.
        threads: how many will share them.
    """
    made = max((sum(_made_bytes(linear) for linear in layer) for layer in layers), default=0)
    panel_bytes = PANEL_TOKENS * max(made, _LEAST_TOKEN_BYTES)
    each = max(_CACHED_BYTES // panel_bytes, _LEAST_PANELS_EACH)
    each = min(each, max(_MOST_BYTES // panel_bytes // threads, 1))
    tiled = any(_layout_of(linear) in AMX_LAYOUTS for layer in layers for linear in layer)
    least = _LEAST_PANELS_TILED if tiled else _LEAST_PANELS
    return PANEL_TOKENS * threads * max(each, -(-least // threads))


def _made_bytes(linear: PreparedLinear) -> int:
    """About what a token's outputs are written as: floats, or else bytes, bf16 and some floats."""
    is_float = _layout_of(linear) in (None, *FLOAT_LAYOUTS)
    return linear.out_features * (4 if is_float else 2)


def _layout_of(linear: PreparedLinear) -> str | None:
    """None: the layer runs by rows."""
    return linear.choices[-1].layout if isinstance(linear, PanelLinear) else None
