"""Quantizers of a layer's input in training: what they leave of floats is what kernels compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.linear.reference import quantize_rows, quantize_rows_asymmetric
from ..spec import DYNAMIC_ACTIVATIONS, ActivationSpec

_LEVELS = 255


class StraightThrough(torch.autograd.Function):
    """Gives ``quantized`` forward and passes the gradient on to ``x`` where ``inside`` is True."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, inside: Tensor | None) -> Tensor:
        """Returns the values of ``quantized``.

        Args:
            ctx: of autograd.
            x: what the gradient goes to.
            quantized: of x's shape and dtype.
            inside: bool of x's shape, or None: everywhere.
        """
        ctx.inside = inside
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        (gradient,) = gradients
        return gradient if ctx.inside is None else gradient * ctx.inside, None, None


class ActivationFakeQuant(nn.Module):
    """Quantizes floats and gives back what is left of them."""

    def spec(self) -> ActivationSpec:
        """How a packed layer quantizes its input to compute the same.

        Raises:
            ValueError: there is no range yet.
        """
        raise NotImplementedError


class DynamicFakeQuant(ActivationFakeQuant):
    """One scale per token, from the token itself.

    The arithmetic is that of ``kernels/linear/reference.py`` to the last bit. Gradients pass
    straight through: nothing lies outside of a range that is the token's own.

    Args:
        kind: "dynamic", uint8 with a zero point per token, or "symmetric", int8.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in DYNAMIC_ACTIVATIONS:
            raise ValueError(f"activations {kind!r}: expected 'dynamic' or 'symmetric'")
        self.kind = kind

    def spec(self) -> ActivationSpec:
        """As the packed layer states it."""
        return DYNAMIC_ACTIVATIONS[self.kind]

    def forward(self, x: Tensor) -> Tensor:
        """What is left of x, float [..., features]."""
        with torch.no_grad():
            rows = x.detach().reshape(-1, x.shape[-1])
            if self.kind == "symmetric":
                q, scale = quantize_rows(rows)
                left = q.float() * scale.unsqueeze(1)
            else:
                q, scale, zero_point = quantize_rows_asymmetric(rows)
                left = (q - zero_point.unsqueeze(1)).float() * scale.unsqueeze(1)
            left = left.view(x.shape).to(x.dtype)
        result: Tensor = StraightThrough.apply(x, left, None)
        return result

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return self.kind


class StaticFakeQuant(ActivationFakeQuant):
    """uint8 with one scale and zero point, from a moving average of each batch's extremes.

    In training every batch moves the range until :meth:`freeze`; the first ``delay`` batches pass
    as they are. ``q = clamp(round_half_even(x / scale) + zero_point, 0, 255)``, as ONNX and the
    packed layer do; gradients stop where q is clamped.

    Args:
        delay: batches that are only observed; at least the first is observed before it is
            quantized.
        averaging: share of a new batch in the average.
    """

    low: Tensor
    high: Tensor

    def __init__(self, *, delay: int = 0, averaging: float = 0.01) -> None:
        super().__init__()
        if delay < 0 or not 0 < averaging <= 1:
            raise ValueError(
                f"delay {delay}, averaging {averaging}: expected batches from 0 and a share above "
                "0 and at most 1"
            )
        self.delay, self.averaging = delay, averaging
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        # Not tensors: asking one on a GPU would make each layer wait for it.
        self.batches, self.frozen = 0, False

    def get_extra_state(self) -> dict[str, int]:
        """What has been observed, in the module's state dict."""
        return {"batches": self.batches, "frozen": int(self.frozen)}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take it back."""
        self.batches, self.frozen = state["batches"], bool(state["frozen"])

    def freeze(self) -> None:
        """Keep the range from now on.

        Raises:
            ValueError: nothing has been observed.
        """
        if not self.batches:
            raise ValueError("freeze: no batch was observed yet; run training batches first")
        self.frozen = True

    def end_delay(self) -> None:
        """Quantize from the next batch on, however many were observed.

        Raises:
            ValueError: nothing has been observed.
        """
        if self.delay and not self.batches:
            raise ValueError("end_delay: no batch was observed yet; run training batches first")
        self.batches = max(self.batches, self.delay)

    @property
    def is_on(self) -> bool:
        """Whether values are quantized, and not only observed."""
        return self.batches > self.delay

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = (extreme.float() for extreme in torch.aminmax(x.detach()))
        share = self.averaging if self.batches else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.batches += 1

    def quantizer(self) -> tuple[Tensor, Tensor]:
        """float32 scale and zero point; 0 is in their range."""
        low, high = self.low.clamp_max(0), self.high.clamp_min(0)
        scale = ((high - low) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(high == low, torch.ones_like(scale), scale)
        return scale, torch.round(-low / scale).clamp(0, _LEVELS)

    def spec(self) -> ActivationSpec:
        """As the packed layer states it.

        Raises:
            ValueError: the range is not known yet, or not finite.
        """
        if not self.is_on:
            raise ValueError(
                f"observed {self.batches} batches and starts behind {self.delay}; train "
                "longer, or give a smaller delay"
            )
        scale, zero_point = (number.item() for number in self.quantizer())
        return ActivationSpec("static", "uint8", scale, int(zero_point))

    def forward(self, x: Tensor) -> Tensor:
        """What is left of x, float of any shape."""
        if self.training and not self.frozen:
            self._observe(x)
        if not self.is_on:
            return x
        with torch.no_grad():
            scale, zero_point = self.quantizer()
            q = torch.round(x.detach().float() / scale) + zero_point
            inside = (q >= 0) & (q <= _LEVELS)
            left = (q.clamp_(0, _LEVELS) - zero_point) * scale
        result: Tensor = StraightThrough.apply(x, left.to(x.dtype), inside)
        return result

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"delay={self.delay}, averaging={self.averaging}"
