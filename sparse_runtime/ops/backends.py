"""The fused operations an encoder is written over, in each backend's own activation layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention import reference as attention_reference
from ..kernels.embedding import reference as embedding_reference
from ..kernels.layer_norm import reference as layer_norm_reference
from .choose import Decision, check_backend, choose
from .types import LinearWeight, Norm, PreparedLinear, TokenBatch, can_fuse

Activation = Any
"""A backend's own form of [tokens, features]; encoders pass it on and never look inside."""


class SideBySide(PreparedLinear):
    """Layers that quantize their common input differently: run one by one, outputs joined."""

    candidate = "side by side"

    def __init__(self, parts: Sequence[PreparedLinear]) -> None:
        names, outputs = [part.name for part in parts], [part.out_features for part in parts]
        super().__init__(" + ".join(names), parts[0].in_features, sum(outputs))
        self.parts = nn.ModuleList(parts)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        y = torch.cat([part(x, activation) for part in self.parts], dim=1)
        return y if residual is None else y + residual.to(y.dtype)


class Backend:
    """The reference backend, and the base of the others: plain PyTorch, row-major activations.

    Attributes:
        name: "reference" or "cpu".
        device: where it runs.
        dtype: the float type of activations.
        decisions: one for every linear layer prepared so far.
    """

    name = "reference"

    def __init__(self, device: torch.device, dtype: torch.dtype, choice: str) -> None:
        self.device = device
        self.dtype = dtype
        self.decisions: list[Decision] = []
        self._choice = choice

    def prepare_linear(self, weights: Sequence[LinearWeight]) -> PreparedLinear:
        """Prepare layers that read the same input; their outputs lie side by side."""
        groups = [list(weights)] if can_fuse(weights) else [[weight] for weight in weights]
        decisions = [
            choose(group, backend=self._choice, device=self.device, dtype=self.dtype)
            for group in groups
        ]
        self.decisions += decisions
        prepared = [decision.prepare() for decision in decisions]
        return prepared[0] if len(prepared) == 1 else SideBySide(prepared)

    def embed(
        self,
        batch: TokenBatch,
        ids: tuple[Tensor, ...],
        tables: tuple[Tensor, ...],
        norm: Norm | None,
    ) -> Activation:
        """Sum one row of each table (float [rows, features]) per token, then normalize."""
        return self._normalize(embedding_reference.embed(ids, tables), norm)

    def linear(
        self,
        x: Activation,
        layer: PreparedLinear,
        *,
        activation: str | None = None,
        residual: Activation | None = None,
        norm: Norm | None = None,
    ) -> Activation:
        """``norm(activation(layer(x)) + residual)``."""
        return self._normalize(layer(x, activation, residual), norm)

    def attention(
        self,
        qkv: Activation,
        batch: TokenBatch,
        *,
        heads: int,
        scale: float,
        bias: Tensor | None = None,
    ) -> Activation:
        """Self-attention within each sequence.

        Args:
            qkv: queries, keys and values side by side.
            batch: the sequences.
            heads: number of heads.
            scale: multiplies the scores.
            bias: float [heads, span, span], indexed by ``batch.row_positions``, or None.
        """
        return attention_reference.attention(
            qkv, batch.lengths, heads, scale, bias, batch.row_positions
        )

    def from_tokens(self, tokens: Tensor) -> Activation:
        """Row-major [tokens, features] -> this backend's form."""
        return tokens

    def to_tokens(self, x: Activation) -> Tensor:
        """This backend's form -> row-major [tokens, features]."""
        return x

    def _normalize(self, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is None:
            return x
        return layer_norm_reference.layer_norm(x, norm.weight, norm.bias, norm.eps)


class CpuBackend(Backend):
    """PyTorch's fused attention around the CPU candidates' linear layers."""

    name = "cpu"

    def attention(
        self,
        qkv: Activation,
        batch: TokenBatch,
        *,
        heads: int,
        scale: float,
        bias: Tensor | None = None,
    ) -> Activation:
        if len(set(batch.lengths)) == 1 and bias is None:
            stream = qkv.unflatten(0, (len(batch.lengths), -1))
            return self._attend(stream, heads, scale, None).flatten(0, 1)
        outputs, start = [], 0
        for length in batch.lengths:
            stop = start + length
            mask = None
            if bias is not None:
                at = batch.row_positions[start:stop]
                mask = bias[:, at.unsqueeze(1), at].to(qkv.dtype)
            outputs.append(self._attend(qkv[start:stop].unsqueeze(0), heads, scale, mask)[0])
            start = stop
        return torch.cat(outputs) if outputs else qkv[:, : qkv.shape[1] // 3]

    @staticmethod
    def _attend(qkv: Tensor, heads: int, scale: float, mask: Tensor | None) -> Tensor:
        """[batch, length, 3 * features] -> [batch, length, features]."""
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return context.transpose(1, 2).flatten(2)


def get_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> Backend:
    """The backend called ``name``; "auto" takes the device's own, else the reference.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend does not run on ``device``.
    """
    check_backend(name)
    device = torch.device(device)
    if name == "cpu" and device.type != "cpu":
        raise RuntimeError(f"backend 'cpu' runs on cpu, got device {device}; use 'auto'")
    if name == "reference" or device.type != "cpu":
        return Backend(device, dtype, choice=name)
    return CpuBackend(device, dtype, choice=name)
