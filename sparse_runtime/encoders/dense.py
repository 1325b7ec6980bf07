"""Linear layers that stay plain tensors: heads, poolers and projections."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DenseLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` on unpacked tensors, called as a prepared layer is.

    Args:
        weight: float [out, in].
        bias: float [out].
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Float [rows, in] -> [rows, out]; the activation is a name of transformers."""
        y = F.linear(x, self.weight, self.bias)
        if activation is not None:
            from transformers.activations import ACT2FN

            y = ACT2FN[activation](y)
        return y if residual is None else y + residual
