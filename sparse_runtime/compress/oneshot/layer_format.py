"""What one layer's weight may become: a pattern and a type of values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...formats import Compression, project
from ...formats.base import PackedWeight
from ...spec import DYNAMIC_ACTIVATIONS, ActivationSpec, ValueSpec
from ..patterns import Pattern
from .channels import ALL, Channels
from .hessian import InputStatistics
from .layerwise import Format, solve_linear
from .solvers import Method, SolvedLinear, SolverOptions

BY_TOKEN = DYNAMIC_ACTIVATIONS["dynamic"]
SOME_RANGE = ActivationSpec("static", "uint8", 0.05, 128)
"""Times do not depend on the range, which may be known only when the layers are solved."""


@dataclass(frozen=True)
class LayerFormat:
    """A pattern, or none for dense, and a type of values. Build it with :meth:`parse`."""

    pattern: Pattern | None
    values: ValueSpec

    @classmethod
    def parse(cls, text: str) -> LayerFormat:
        """Read "dense int8", "2:4 int4", "block:1x4@0.8 int8" or "unstructured@0.9 fp32".

        Raises:
            ValueError: for any other text.
        """
        structure, _, values = text.strip().partition(" ")
        if not values:
            raise ValueError(
                f"format {text!r}: expected a pattern and values, such as 'dense int8' or "
                "'2:4 int8'"
            )
        pattern = None if structure == "dense" else Pattern.parse(structure)
        return cls(pattern, ValueSpec.parse(values.strip(), "row"))

    def __str__(self) -> str:
        return f"{self.pattern or 'dense'} {self.values.dtype}"

    @property
    def density(self) -> float:
        """Share of weights that are kept."""
        return 1.0 if self.pattern is None else 1 - self.pattern.final_sparsity

    def pack(self, weight: Tensor, inputs: ActivationSpec | None = BY_TOKEN) -> PackedWeight:
        """The packed weight: pruned by magnitude where it does not fit yet, rounded to values.

        Its structure is the one that ``convert`` sees in the zeros.

        Args:
            weight: float [out, in].
            inputs: how those of integer values are quantized.
        """
        if self.pattern is not None:
            weight = project(weight.float(), self.pattern.structure, self.pattern.sparsity)
        policy = Compression.parse(values=self.values.dtype)
        if self.values.is_integer:
            policy = replace(policy, activations=inputs)
        return policy.apply(weight)[0]

    def pack_unsolved(
        self, weight: Tensor, inputs: ActivationSpec | None = BY_TOKEN
    ) -> PackedWeight:
        """As :meth:`pack`, with as many weights as solving may leave: for sizes and times alone.

        A solver fills zeros that the source happens to have, wherever the pattern allows it.
        """
        return self.pack(_without_zeros(weight), inputs)

    @property
    def wanted(self) -> Format:
        """What the solver is asked for; float values stay as they are."""
        return Format(self.pattern, self.values if self.values.is_integer else None)

    def solve(
        self,
        name: str,
        linear: nn.Linear,
        statistics: InputStatistics,
        left: Channels = ALL,
        *,
        method: Method = "obs",
        options: SolverOptions | None = None,
    ) -> SolvedLinear:
        """A layer in this format, by :func:`~.layerwise.solve_linear`."""
        return solve_linear(
            name, linear, statistics, self.wanted, left, method=method, options=options
        )


def _without_zeros(weight: Tensor) -> Tensor:
    """A weight whose largest are where they were, and of which no rounding makes a zero."""
    size = weight.detach().float().abs()
    mean = float(size.mean()) or 1.0
    # At random, for ties fall on neighbours, which would look like blocks.
    drawn = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) * mean
    size = torch.where(size == 0, drawn, size)
    return torch.where(weight < 0, -1.0, 1.0) * (size + size.max())
