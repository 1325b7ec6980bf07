"""Ranges of layers' inputs from a calibration run: static uint8 scales and zero points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...spec import ActivationSpec
from ...spec.activations import SMALLEST_SCALE

RangeMethod = Literal["min-max", "percentile", "mse"]
RANGE_METHODS: tuple[RangeMethod, ...] = ("min-max", "percentile", "mse")

PERCENTILE = 99.99
BINS = 4096
_LEVELS = 255
_SHRINKS = 40
"""Ends that the search tries on each side: down to 1 / 40 of the range seen."""
_STEPS = range(_SHRINKS, 0, -1)
_PASSES = 3


class RangeHistogram:
    """How often values of a tensor were seen, over a range that grows with them.

    Bins lie symmetric about zero. When a value falls outside, the width doubles and pairs of bins
    join, so counts are never guessed: each is right to within a bin.

    Attributes:
        low: the smallest value, at most 0: zero must have an integer of its own.
        high: the largest value, at least 0.
        counts: float64 [bins].
        limit: the bins reach from ``-limit`` to ``limit``; 0 before a value other than 0 is seen.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 4 or bins % 4:
            raise ValueError(f"bins {bins}: expected a multiple of 4, so that pairs can join")
        self.low, self.high, self.limit = 0.0, 0.0, 0.0
        self.counts = torch.zeros(bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count values in.

        Args:
            values: float, any shape.

        Raises:
            ValueError: a value is not finite.
        """
        if values.numel() == 0:
            return
        flat = values.detach().float().flatten()
        low, high = (float(end) for end in flat.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("values: expected finite numbers, got NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-self.low, self.high))
        if self.limit == 0:
            self.counts[len(self.counts) // 2] += len(flat)
            return
        bins = len(self.counts)
        counts = torch.histc(flat, bins, -self.limit, self.limit)
        self.counts += counts.double()

    def centres(self) -> Tensor:
        """float64 [bins]: the middle of each bin."""
        bins = len(self.counts)
        return (torch.arange(bins, dtype=torch.float64) + 0.5) * (
            2 * self.limit / bins
        ) - self.limit

    def percentile_range(self, percentile: float = PERCENTILE) -> tuple[float, float]:
        """The smallest range about zero outside of which lie ``100 - percentile`` % of the values,
        half of them on each side; to within a bin, and never wider than what was seen.

        Raises:
            ValueError: the percentile is not in (50, 100].
        """
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile {percentile}: expected a number above 50 and up to 100")
        if percentile == 100 or self.limit == 0:
            return self.low, self.high
        # A hair more: 100 - 99.9 is a little less than 0.1 in floats.
        outside = float(self.counts.sum()) * (100 - percentile) / 200 * (1 + 1e-9)
        edges = torch.linspace(-self.limit, self.limit, len(self.counts) + 1, dtype=torch.float64)
        below = self.counts.cumsum(0)
        above = self.counts.flip(0).cumsum(0).flip(0)
        low = float(edges[int((below <= outside).sum())])
        high = float(edges[len(self.counts) - int((above <= outside).sum())])
        return max(self.low, min(low, 0.0)), min(self.high, max(high, 0.0))

    def mse_range(self) -> tuple[float, float]:
        """The range, zero in it, whose 255 steps give the least mean square error of all values.

        Ends are searched in turn on a grid of 40 steps each; values outside are clipped.
        """
        low, high = self.low, self.high
        if self.limit == 0 or low == high:
            return low, high
        centres = self.centres()
        seen = self.counts > 0
        centres, counts = centres[seen], self.counts[seen]
        for _ in range(_PASSES):
            before = (low, high)
            highs = [(low, self.high * step / _SHRINKS) for step in _STEPS]
            high = _best_end(highs, centres, counts)[1]
            lows = [(self.low * step / _SHRINKS, high) for step in _STEPS]
            low = _best_end(lows, centres, counts)[0]
            if (low, high) == before:
                break
        return low, high

    def _reach(self, limit: float) -> None:
        """Grow until ``limit`` lies within the bins."""
        if limit == 0:
            return
        if self.limit == 0:
            self.limit = limit
            return
        quarter = len(self.counts) // 4
        while self.limit < limit:
            joined = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([joined.new_zeros(quarter), joined, joined.new_zeros(quarter)])
            self.limit *= 2


def _best_end(
    ranges: Sequence[tuple[float, float]], centres: Tensor, counts: Tensor
) -> tuple[float, float]:
    errors = []
    for low, high in ranges:
        scale = max((high - low) / _LEVELS, SMALLEST_SCALE)
        zero = round(-low / scale)
        levels = (torch.round(centres / scale) + zero).clamp(0, _LEVELS) - zero
        errors.append(float(((levels * scale - centres).square() * counts).sum()))
    return ranges[min(range(len(ranges)), key=errors.__getitem__)]


def static_spec(low: float, high: float) -> ActivationSpec:
    """uint8 with one scale and zero point for values from ``low`` to ``high``, zero included.

    ``scale = (high - low) / 255``, ``zero_point = round(-low / scale)``; scale 1 where nothing but
    zeros was seen.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return ActivationSpec("static", "uint8", 1.0, 0)
    scale = max((high - low) / _LEVELS, SMALLEST_SCALE)
    return ActivationSpec("static", "uint8", scale, min(max(round(-low / scale), 0), _LEVELS))


def activation_ranges(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    batches: Sequence[dict[str, Tensor]],
    *,
    method: RangeMethod = "mse",
    percentile: float = PERCENTILE,
    progress: bool | None = None,
) -> dict[str, ActivationSpec]:
    """Run a model and say how each linear layer's input is to be quantized, once for all inputs.

    Padding is left out. Layers that read the same tensor get the same numbers.

    Args:
        model: a transformers model in eval mode.
        linears: its layers by name, as ``encoder_linears`` gives them.
        batches: calibration inputs, with "attention_mask".
        method: "min-max" takes all that was seen; "percentile" leaves out the rarest; "mse" the
            range of the least error.
        percentile: for that method, in percent.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Returns:
        A static uint8 description by layer name.

    Raises:
        ValueError: another method; no batches; or values that are not finite, naming the layer.
    """
    if method not in RANGE_METHODS:
        raise ValueError(
            f"method {method!r}: expected one of {', '.join(map(repr, RANGE_METHODS))}"
        )
    if not batches:
        raise ValueError("batches: expected at least one")
    found = {name: RangeHistogram() for name in linears}
    mask: list[Tensor] = []
    handles = [
        linear.register_forward_pre_hook(_observer(name, found[name], mask))
        for name, linear in linears.items()
    ]
    disable = None if progress is None else not progress
    try:
        with torch.no_grad():
            for batch in tqdm(batches, desc="ranges", unit="batch", disable=disable):
                mask[:] = [batch["attention_mask"].bool()]
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: static_spec(*_range(one, method, percentile)) for name, one in found.items()}


def _range(
    histogram: RangeHistogram, method: RangeMethod, percentile: float
) -> tuple[float, float]:
    if method == "min-max":
        return histogram.low, histogram.high
    if method == "percentile":
        return histogram.percentile_range(percentile)
    return histogram.mse_range()


def _observer(name: str, histogram: RangeHistogram, mask: list[Tensor]) -> Callable[..., None]:
    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0]
        # A pooler reads one token of each sequence, and has nothing to leave out.
        tokens = values[mask[0]] if values.ndim == 3 else values
        try:
            histogram.add(tokens)
        except ValueError as error:
            raise ValueError(f"{name}: {error} in its input") from error

    return observe
