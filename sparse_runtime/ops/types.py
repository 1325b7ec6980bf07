"""What the operations take and give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..formats import PackedWeight
from ..kernels.layer_norm import reference as layer_norm
from ..kernels.linear.reference import ACTIVATIONS
from ..spec import ActivationSpec


@dataclass(frozen=True)
class LinearWeight:
    """One packed linear layer.

    Attributes:
        name: for messages, as in the checkpoint.
        packed: the weight.
        bias: float [out] or None.
    """

    name: str
    packed: PackedWeight
    bias: Tensor | None = None


@dataclass(frozen=True)
class LinearRequest:
    """Linear layers that read the same input, to be run as one: outputs lie side by side.

    Attributes:
        weights: they quantize their input alike (:func:`can_fuse`).
        device: where they run.
        dtype: the activations'.
        results: how the layer that alone reads the outputs quantizes them; None: it reads floats,
            or is not known. Only what is fastest depends on it.
    """

    weights: tuple[LinearWeight, ...]
    device: torch.device
    dtype: torch.dtype
    results: ActivationSpec | None = None

    @property
    def name(self) -> str:
        """The layers' names, for messages."""
        return " + ".join(weight.name for weight in self.weights)

    @property
    def in_features(self) -> int:
        """Size of the common input."""
        return self.weights[0].packed.spec.shape[1]

    @property
    def out_features(self) -> int:
        """Size of all outputs together."""
        return sum(weight.packed.spec.shape[0] for weight in self.weights)

    @property
    def is_integer(self) -> bool:
        """Whether inputs are quantized and sums are integers."""
        return self.weights[0].packed.spec.activations is not None

    def stacked_bias(self) -> Tensor | None:
        """float32 [all outputs], zeros where a layer has none; None where no layer has one.

        Raises:
            ValueError: a bias is not as long as its layer has outputs.
        """
        if all(weight.bias is None for weight in self.weights):
            return None
        for weight in self.weights:
            rows = (weight.packed.spec.shape[0],)
            if weight.bias is not None and tuple(weight.bias.shape) != rows:
                raise ValueError(
                    f"{weight.name}: expected a bias of {list(rows)}, got {list(weight.bias.shape)}"
                )
        biases = [
            torch.zeros(w.packed.spec.shape[0], device=self.device)
            if w.bias is None
            else w.bias.detach().to(self.device, torch.float32)
            for w in self.weights
        ]
        return torch.cat(biases)

    def stacked_outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """How the outputs are requantized, row by row; None where no layer's are.

        Returns:
            (scale float32, zero_point int32, low int32, high int32), each [all outputs]. Rows that
            are not requantized have scale 0, which no quantizer has, and zeros.
        """
        specs = [weight.packed.spec for weight in self.weights]
        if all(spec.outputs is None for spec in specs):
            return None
        rows = torch.tensor([spec.shape[0] for spec in specs])
        outputs = [spec.outputs for spec in specs]
        scale = torch.tensor([0.0 if out is None else out.scale for out in outputs])
        integers = torch.tensor(
            [(0, 0, 0) if out is None else (out.zero_point, *out.range) for out in outputs],
            dtype=torch.int32,
        )
        columns = (scale, *integers.unbind(1))
        scale, zero_point, low, high = (
            column.repeat_interleave(rows).to(self.device) for column in columns
        )
        return scale, zero_point, low, high


def can_fuse(weights: Sequence[LinearWeight]) -> bool:
    """Whether these layers, given the same input, may be run as one.

    Their inputs must be quantized alike. Scales, zero points and output quantizers may differ: they
    belong to the rows of each layer (:meth:`LinearRequest.stacked_outputs`).
    """
    specs = [weight.packed.spec for weight in weights]
    return len({(spec.activations, spec.shape[1]) for spec in specs}) == 1


class PreparedLinear(nn.Module, ABC):
    """Layers in the layout one candidate runs; holds non-persistent buffers only.

    Attributes:
        candidate: name of the candidate.
        name: the layers' names, for messages.
        in_features: size of the input.
        out_features: size of all outputs together.
    """

    candidate: str

    def __init__(self, name: str, in_features: int, out_features: int) -> None:
        super().__init__()
        self.name = name
        self.in_features = in_features
        self.out_features = out_features

    def check(self, x: Tensor, activation: str | None, residual: Tensor | None) -> None:
        """Raise ValueError, before anything is computed, for operands that do not fit.

        Kernels go by addresses: what this lets pass, they read.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features or not x.is_floating_point():
            raise ValueError(
                f"{self.name}: expected x as floats [tokens, {self.in_features}], got {x.dtype} "
                f"{list(x.shape)}"
            )
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(
                f"{self.name}: activation {activation!r}: expected None or one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if residual is None:
            return
        if residual.shape != (x.shape[0], self.out_features) or residual.device != x.device:
            raise ValueError(
                f"{self.name}: expected residual [{x.shape[0]}, {self.out_features}] on "
                f"{x.device}, got {list(residual.shape)} on {residual.device}"
            )

    @abstractmethod
    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """``activation(x @ w.T + bias) + residual`` for float x [tokens, in], in x's dtype."""


class Candidate(ABC):
    """One way to run a linear layer. A new kernel family joins by adding one to ``CANDIDATES``."""

    name: ClassVar[str]
    backend: ClassVar[str]

    def unavailable(self) -> str | None:
        """Why this machine cannot run it, or None."""
        return None

    @abstractmethod
    def rejects(self, request: LinearRequest) -> str | None:
        """Why it cannot take these layers, or None."""

    def asked_only(self, request: LinearRequest) -> str | None:
        """Why "auto" leaves it out although it could run these layers, or None."""
        return None

    @abstractmethod
    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        """What it does with these layers, for ``explain()``: layout, expansion, bytes, times.

        Args:
            request: the layers.
            measure: also time them now; a candidate that predicts no times may say nothing.
        """

    @abstractmethod
    def prepare(self, request: LinearRequest) -> PreparedLinear:
        """Bring the layers into the layout it runs."""


@dataclass(frozen=True)
class Norm:
    """LayerNorm parameters: float [features] each.

    Without ``eps`` it takes no statistics: ``x * weight + bias`` (NoNorm).
    """

    weight: Tensor
    bias: Tensor
    eps: float | None

    def apply(self, x: Tensor) -> Tensor:
        """In plain PyTorch: float [tokens, features] -> the same shape and dtype."""
        if self.eps is None:
            return layer_norm.no_norm(x, self.weight, self.bias)
        return layer_norm.layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class TokenBatch:
    """Sequences as one stream of tokens without padding.

    Attributes:
        lengths: tokens of each sequence, summing to the number of tokens.
        row_positions: int64 [tokens], each token's column in the padded input.
        index: int64 [tokens], each token's position in the flattened padded input.
        batch_size: rows of the padded input.
        seq_len: columns of the padded input.
        starts: integers [rows + 1] on the device: where each sequence starts in the stream, and the
            end; None where it has not been made.
        leads: whether every row's first column is a real token; None where the host has not asked.
    """

    lengths: list[int]
    row_positions: Tensor
    index: Tensor
    batch_size: int
    seq_len: int
    starts: Tensor | None = None
    leads: bool | None = None

    def split(
        self, most_tokens: int, *, nearest: bool = False
    ) -> Iterator[tuple[TokenBatch, slice]]:
        """Parts of whole sequences, and where they lie.

        Args:
            most_tokens: that a part may have; a longer sequence is a part of its own.
            nearest: whether a part may have one sequence more, if that is nearer to
                ``most_tokens`` than without it.
        """
        if len(self.index) <= most_tokens:
            yield self, slice(0, len(self.index))
            return
        first = start = 0
        while first < len(self.lengths):
            last, stop = first + 1, start + self.lengths[first]
            # A row without tokens goes with its neighbours: no part is left without any.
            while last < len(self.lengths) and (
                stop == start
                or self.lengths[last] == 0
                or stop + self.lengths[last] - start <= most_tokens
                or (nearest and 2 * (stop - start) + self.lengths[last] <= 2 * most_tokens)
            ):
                stop += self.lengths[last]
                last += 1
            at = slice(start, stop)
            yield (
                replace(
                    self,
                    lengths=self.lengths[first:last],
                    row_positions=self.row_positions[at],
                    index=self.index[at],
                    starts=None,
                    leads=None,
                ),
                at,
            )
            first, start = last, stop
