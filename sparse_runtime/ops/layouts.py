"""Which device layout runs a layer on this CPU, by the measured costs of :mod:`.calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration import FEW, FLOAT_LAYOUTS, INT8_LAYOUTS, MANY, Costs, machine_costs
from .native import address, extension
from .types import LinearRequest

ROW_BLOCK = 32
"""Rows of a weight are padded to a multiple (csrc/cpu/float_panels/kernels.h)."""

ANY_TOKENS = 2**40
FEW_TOKENS = 16
"""Up to one vector of tokens, a layer may have a layout of its own."""

WORTH_A_SECOND = 1.5
"""How much faster that must be, for it costs its bytes once more."""

TIE = 1.1
"""Layouts this close to the fastest are told apart by their size."""


@dataclass(frozen=True)
class LayoutChoice:
    """One device layout of a layer.

    Attributes:
        layout: its name in ``sparse_runtime._C``.
        most_tokens: the largest number of tokens it is used for.
        nbytes: of its values and indices.
        seconds: predicted for the product on one panel of 64 tokens (up to 16 where that is
            ``most_tokens``), one thread; NaN where there was nothing to choose from.
        others: the same for every other layout that runs here.
    """

    layout: str
    most_tokens: int
    nbytes: int
    seconds: float
    others: Mapping[str, float]

    @property
    def regime(self) -> str:
        """The number of tokens that ``seconds`` is for: FEW or MANY."""
        return MANY if self.most_tokens == ANY_TOKENS else FEW

    def explain(self, measured: float | None = None) -> str:
        """The layout, when it is used, and the prediction against the others'.

        Args:
            measured: the seconds that were predicted, as measured; None says nothing of them.
        """
        upto = "" if self.most_tokens == ANY_TOKENS else f" up to {self.most_tokens} tokens"
        text = f"{self.layout}{upto}: {self.nbytes:,} bytes"
        if not isnan(self.seconds):
            text += f", predicted {_microseconds(self.seconds)} us"
        if measured is not None:
            text += f", measured {_microseconds(measured)} us"
        slower = ", ".join(f"{name} {_microseconds(s)}" for name, s in self.others.items())
        return f"{text} (predicted: {slower})" if slower else text


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.{1 if seconds < 10e-6 else 0}f}"


def choose_layouts(
    request: LinearRequest, weight: Tensor, costs: Costs | None = None
) -> tuple[LayoutChoice, ...]:
    """The device layouts for these layers, ascending in ``most_tokens``.

    Args:
        request: the layers.
        weight: int8 or float32 [out, in]: theirs, one below the other.
        costs: None takes this machine's.
    """
    if not request.is_integer and request.dtype == torch.bfloat16 and _is_bf16(request):
        # The float type of the product is the model's: bf16 in, float32 sums.
        tiled = extension().float_panels_runs("tiles16")
        layout = "tiles16" if tiled else "dense16"
        return (LayoutChoice(layout, ANY_TOKENS, _bf16_bytes(weight, tiled), float("nan"), {}),)
    costs = machine_costs() if costs is None else costs
    units, nbytes = _int8_units(weight) if request.is_integer else _float_units(weight)
    names = INT8_LAYOUTS if request.is_integer else FLOAT_LAYOUTS
    rows = weight.shape[0]
    predicted = {
        regime: {
            name: costs[name][regime].seconds(units[name], rows, nbytes[name])
            for name in names
            if name in costs
        }
        for regime in (FEW, MANY)
    }
    many = _best(predicted[MANY], nbytes)
    few = _best(predicted[FEW], nbytes)
    choices = [_choice(many, ANY_TOKENS, predicted[MANY], nbytes)]
    limit = min(WORTH_A_SECOND * predicted[FEW][few], _dense(predicted[FEW]))
    if predicted[FEW][many] > limit:
        choices.insert(0, _choice(few, FEW_TOKENS, predicted[FEW], nbytes))
    return tuple(choices)


def _best(predicted: Mapping[str, float], nbytes: Mapping[str, int]) -> str:
    """The smallest of those that are about as fast as the fastest, and no slower than dense."""
    limit = min(TIE * min(predicted.values()), _dense(predicted))
    close = [name for name, seconds in predicted.items() if seconds <= limit]
    return min(close, key=lambda name: nbytes[name])


def _dense(predicted: Mapping[str, float]) -> float:
    return predicted["dense" if "dense" in predicted else "dense32"]


def _choice(
    layout: str, most_tokens: int, predicted: Mapping[str, float], nbytes: Mapping[str, int]
) -> LayoutChoice:
    others = {name: seconds for name, seconds in predicted.items() if name != layout}
    return LayoutChoice(layout, most_tokens, nbytes[layout], predicted[layout], others)


def _int8_units(weight: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Units that each layout multiplies, and the bytes it takes (csrc/cpu/int8_panels/pack.cc)."""
    weight = weight.contiguous()
    units = extension().int8_panels_count(address(weight), *weight.shape)
    tile_bits = units["nonzeros"] + units["tiles"] * (16 * 8 + 8 + 2)
    nbytes = {
        "dense": 16 * units["dense"],
        "band4_grouped": 18 * units["band4_grouped"],
        "band4_gathered": 24 * units["band4_gathered"],
        "band1_grouped": 6 * units["band1_grouped"],
        "band1_gathered": 12 * units["band1_gathered"],
        "tiles": 1026 * units["tiles"],
        "tile_bits": tile_bits,
    }
    return units, nbytes


def _float_units(weight: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """The same for float32 (csrc/cpu/float_panels/pack.cc)."""
    weight = weight.contiguous()
    units = extension().float_panels_count(address(weight), *weight.shape)
    return units, {"dense32": 4 * units["dense32"], "sparse32": 6 * units["sparse32"]}


def _bf16_bytes(weight: Tensor, tiled: bool) -> int:
    rows, columns = weight.shape
    if not tiled:
        return 2 * _padded(rows, ROW_BLOCK) * _padded(columns, 2)
    edges = (0, _padded(columns, 32) - columns, 0, _padded(rows, 16) - rows)
    tiles = F.pad(weight != 0, edges).unflatten(1, (-1, 32)).unflatten(0, (-1, 16))
    return 1026 * int(tiles.any(dim=3).any(dim=1).sum())


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def _is_bf16(request: LinearRequest) -> bool:
    return all(weight.packed.spec.values.dtype == "bf16" for weight in request.weights)
