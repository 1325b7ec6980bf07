"""What one layer's weight may become: a pattern and a type of values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...formats import Compression
from ...formats.base import PackedWeight
from ...spec import ValueSpec
from ..patterns import Pattern
from .hessian import InputStatistics
from .layerwise import Format
from .solvers import Method, SolvedLinear, SolverOptions, solve


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

    def pack(self, weight: Tensor) -> PackedWeight:
        """The packed weight: pruned by magnitude where it does not fit yet, rounded to values."""
        return self.compression().apply(weight)[0]

    def compression(self) -> Compression:
        """The policy of ``convert`` for a weight of this format."""
        return Compression.parse(
            structure="dense" if self.pattern is None else str(self.pattern.structure),
            prune=None if self.pattern is None else str(self.pattern),
            values=self.values.dtype,
        )

    @property
    def wanted(self) -> Format:
        """What the solver is asked for; float values stay as they are."""
        return Format(self.pattern, self.values if self.values.is_integer else None)

    def solve(
        self,
        name: str,
        linear: nn.Linear,
        statistics: InputStatistics,
        *,
        method: Method = "obs",
        options: SolverOptions | None = None,
    ) -> SolvedLinear:
        """A layer in this format, by :func:`~.solvers.solve`."""
        return solve(
            name,
            linear.weight,
            statistics,
            self.pattern,
            method=method,
            values=self.wanted.values,
            options=options,
            has_bias=linear.bias is not None,
        )
