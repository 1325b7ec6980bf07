"""Quantizers that quantization-aware training leaves in a checkpoint, read back exactly.

A ``FakeQuantize`` of torch.ao.quantization, or of a library built on it, is a group of tensors:
``scale`` and ``zero_point``, ``fake_quant_enabled`` and ``observer_enabled``, and what its observer
saw, ``activation_post_process.{min_val,max_val,eps}``. The range of its integers is not stored.

Source: PyTorch, torch/ao/quantization/fake_quantize.py and observer.py. It computes, in float32,
``(clamp(round_half_even(x * (1 / scale)) + zero_point, low, high) - zero_point) * scale``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...spec import ActivationSpec
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import real
from ..options import one_of

INT8 = (-128, 127)
UINT8 = (0, 255)
_NEEDED = ("scale", "zero_point", "fake_quant_enabled", "observer_enabled")
_SEEN = ("activation_post_process.min_val", "activation_post_process.max_val")
_OPTIONAL = ("activation_post_process.eps",)
# Neighbouring ranges differ by 1 in 255; float32 scales are far closer to what they come from.
_CLOSE = 1e-3


@dataclass(frozen=True)
class Quantizer:
    """One enabled group.

    Attributes:
        name: the group's name in the file.
        scale: finite and above 0; a float32.
        zero_point: the integer that stands for 0.
        seen: smallest and largest value that the observer saw, widened to take 0 in, or None where
            it has seen nothing.
    """

    name: str
    scale: float
    zero_point: int
    seen: tuple[float, float] | None

    def quantize(self, x: Tensor, limits: tuple[int, int]) -> Tensor:
        """float -> the integers, zero point included, float32 of x's shape."""
        scale = torch.tensor(self.scale, dtype=torch.float32)
        return torch.round(x.float() * (1 / scale)).add_(self.zero_point).clamp_(*limits)

    def fake(self, x: Tensor, limits: tuple[int, int]) -> Tensor:
        """What the quantizer leaves of floats, float32 of x's shape."""
        scale = torch.tensor(self.scale, dtype=torch.float32)
        return (self.quantize(x, limits) - self.zero_point) * scale

    def static(self, dtype: str) -> ActivationSpec:
        """As the description of a layer's inputs or outputs, "int8" or "uint8".

        Raises:
            CheckpointError: the zero point lies outside of the type.
        """
        try:
            return ActivationSpec("static", dtype, self.scale, self.zero_point)  # type: ignore[arg-type]
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {error}; the file is damaged") from error


def take_quantizer(draft: Draft, group: str) -> Quantizer | None:
    """Take a group away and read it; None where it is switched off, or not there at all.

    Args:
        draft: the checkpoint.
        group: what stands before ".scale" in the names.

    Raises:
        CheckpointError: it is incomplete, has tensors that no FakeQuantize has, is per channel, was
            never calibrated, or its numbers are no scale and zero point.
    """
    start = f"{group}."
    inside = {name.removeprefix(start) for name in draft.tensors if name.startswith(start)}
    if not inside:
        return None
    unknown = inside - {*_NEEDED, *_SEEN, *_OPTIONAL}
    if unknown:
        raise CheckpointError(
            f"{group}: expected the tensors of a FakeQuantize, got {listed(unknown)} besides; this "
            "form of it is not supported"
        )
    tensors = {name: draft.take(f"{group}.{name}") for name in (*_NEEDED, *_SEEN)}
    for name in _OPTIONAL:
        draft.tensors.pop(f"{group}.{name}", None)
    if not flag(f"{group}.fake_quant_enabled", tensors["fake_quant_enabled"]):
        return None
    return _read(group, tensors)


def flag(name: str, tensor: LazyTensor) -> bool:
    """A stored 0 or 1.

    Raises:
        CheckpointError: it is neither.
    """
    value = _number(name, tensor)
    if value not in (0, 1):
        raise CheckpointError(f"{name}: expected 0 or 1, got {value:g}; the file is damaged")
    return value == 1


def activation_type(draft: Draft, quantizer: Quantizer) -> str:
    """ "uint8" or "int8": the type of a quantizer of 8 bits that may be either.

    The observer's values give it away: only one type has their scale and zero point.

    Raises:
        CheckpointError: the quantizer has fewer bits, or the file leaves its type open.
    """
    fitting = {name for name in ("uint8", "int8") if _fits(quantizer, name)}
    if len(fitting) == 1:
        return fitting.pop()
    _refuse_fewer_bits(quantizer)
    if not 0 <= quantizer.zero_point <= INT8[1]:
        return "int8" if quantizer.zero_point < 0 else "uint8"
    return draft.options.ask(
        "activation_range",
        one_of("uint8", "int8"),
        f"{quantizer.name}: scale {quantizer.scale:g} and zero point {quantizer.zero_point} do not "
        f"follow from {_what_was_seen(quantizer)}, so the file does not say whether its integers "
        "are uint8 (0..255) or int8 (-128..127)",
        "uint8",
    )


def weight_limits(draft: Draft, quantizer: Quantizer) -> tuple[int, int]:
    """Range of a symmetric quantizer of weights: -128..127, or -127..127 where it is narrow.

    torch sets the scale to the largest magnitude over half of the range, so that the observer's
    values give the range away.

    Raises:
        CheckpointError: the quantizer is not symmetric, has fewer bits, or leaves its range open.
    """
    if quantizer.zero_point != 0:
        raise CheckpointError(
            f"{quantizer.name}: expected zero point 0, got {quantizer.zero_point}; weights that "
            "are not symmetric about 0 are not supported in this layout"
        )
    if quantizer.seen is not None:
        steps = max(-quantizer.seen[0], quantizer.seen[1]) / quantizer.scale
        for limit, half_range in ((-128, 127.5), (-127, 127.0)):
            if math.isclose(steps, half_range, rel_tol=_CLOSE):
                return limit, 127
    _refuse_fewer_bits(quantizer)
    word = draft.options.ask(
        "weight_range",
        one_of("full", "narrow"),
        f"{quantizer.name}: scale {quantizer.scale:g} does not follow from "
        f"{_what_was_seen(quantizer)}, so the file does not say whether its integers lie in "
        "-128..127 (full) or -127..127 (narrow)",
        "full",
    )
    return (-128 if word == "full" else -127), 127


def _read(group: str, tensors: dict[str, LazyTensor]) -> Quantizer:
    scale = _number(f"{group}.scale", tensors["scale"])
    if not (math.isfinite(scale) and scale > 0):
        raise CheckpointError(
            f"{group}.scale: expected a finite number above 0, got {scale:g}; the quantizer was "
            "never calibrated, or the file is damaged"
        )
    zero_point = _number(f"{group}.zero_point", tensors["zero_point"])
    if not zero_point.is_integer() or not INT8[0] <= zero_point <= UINT8[1]:
        raise CheckpointError(
            f"{group}.zero_point: expected an integer from -128 to 255, got {zero_point:g}; the "
            "file is damaged"
        )
    low, high = (_seen(f"{group}.{name}", tensors[name]) for name in _SEEN)
    seen = None
    if low is not None and high is not None and low <= high:
        seen = (min(low, 0.0), max(high, 0.0))
    elif (scale, zero_point) == (1.0, 0):
        raise CheckpointError(
            f"{group}: switched on, but its observer has seen nothing and its scale is still 1; "
            "the model was saved before quantization-aware training had begun"
        )
    return Quantizer(group, scale, int(zero_point), seen)


def _number(name: str, tensor: LazyTensor) -> float:
    count = math.prod(tensor.shape)
    if count != 1:
        raise CheckpointError(
            f"{name}: expected one number for the whole tensor, got shape {list(tensor.shape)}; "
            "quantizers with a scale per channel are not supported in this layout"
        )
    return float(real(name, tensor.load()).item())


def _seen(name: str, tensor: LazyTensor) -> float | None:
    """What an observer saw; before it has, torch has infinities there, and had empty tensors."""
    if math.prod(tensor.shape) == 0:
        return None
    value = _number(name, tensor)
    return value if math.isfinite(value) else None


def _fits(quantizer: Quantizer, dtype: str) -> bool:
    """Whether torch gives an 8-bit quantizer of this type this scale and zero point."""
    if quantizer.seen is None:
        return False
    (low, high), (smallest, largest) = quantizer.seen, UINT8 if dtype == "uint8" else INT8
    if math.isclose((high - low) / quantizer.scale, 255, rel_tol=_CLOSE):
        expected = min(max(smallest - round(low / quantizer.scale), smallest), largest)
        # A quotient next to a half may have been rounded the other way in float32.
        return abs(expected - quantizer.zero_point) <= 1
    symmetric = math.isclose(max(-low, high) / quantizer.scale, 127.5, rel_tol=_CLOSE)
    # The middle of 0..255 is either; which one depends on the version of torch.
    return symmetric and quantizer.zero_point in ((127, 128) if dtype == "uint8" else (0,))


def _refuse_fewer_bits(quantizer: Quantizer) -> None:
    if quantizer.seen is None:
        return
    low, high = quantizer.seen
    for bits in range(2, 8):
        for span in (high - low, 2 * max(-low, high)):
            if math.isclose(span / quantizer.scale, 2**bits - 1, rel_tol=_CLOSE):
                raise CheckpointError(
                    f"{quantizer.name}: a quantizer of {bits} bits by its scale "
                    f"{quantizer.scale:g} and {_what_was_seen(quantizer)}; expected 8 bits, for "
                    "only those are supported in this layout"
                )


def _what_was_seen(quantizer: Quantizer) -> str:
    if quantizer.seen is None:
        return "what its observer saw, which is nothing"
    return f"the values its observer saw, {quantizer.seen[0]:g} to {quantizer.seen[1]:g}"
