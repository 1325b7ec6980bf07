"""What is timed in the kernel benchmark, and the record that each time is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_runtime.benchmarks.contenders import Contender
from sparse_runtime.benchmarks.records import Environment, Record, percentiles_us
from sparse_runtime.benchmarks.roofline import Roofline
from sparse_runtime.formats import PackedWeight
from sparse_runtime.spec import Structure
from sparse_runtime.testing import Timing


@dataclass(frozen=True)
class KernelCase:
    """One layer to time: a named linear of a named shape, as it is packed, and its tokens."""

    shape: str
    layer: str
    out_features: int
    in_features: int
    tokens: int
    structure: str
    sparsity: float | None
    values: str

    def __str__(self) -> str:
        at = "" if self.sparsity is None else f"@{self.sparsity:g}"
        return (
            f"{self.shape} {self.layer} [{self.out_features}, {self.in_features}], "
            f"{self.tokens} tokens, {self.structure}{at} {self.values}"
        )


@dataclass(frozen=True)
class KernelRecord(Record):
    """One contender on one case; docs/benchmarks.md describes the fields."""

    kind: ClassVar[str] = "kernel"

    shape: str
    layer: str
    out_features: int
    in_features: int
    tokens: int
    structure: str
    sparsity: float
    values: str
    contender: str
    baseline: bool
    chosen: bool
    max_error: float | None
    moved_bytes: int
    dense_gflops: float
    gb_per_s: float
    roofline_us: float
    roofline_percent: float
    bound: str
    dense_baseline: str
    speedup: float
    roofline: dict[str, Any]


@dataclass(frozen=True)
class KernelRun:
    """What the records of one case share."""

    case: KernelCase
    packed: PackedWeight
    timings: dict[str, Timing]
    errors: dict[str, float]
    roofline: Roofline
    threads: int
    environment: Environment

    def record(self, contender: Contender, group: list[Contender]) -> KernelRecord:
        case, seconds = self.case, self.timings[contender.name].median
        dense = case.out_features * case.in_features
        stored = dense if contender.baseline else stored_values(self.packed)
        moved = self._moved_bytes(contender)
        floor_us, bound = self.roofline.floor_us(
            2 * stored * case.tokens, moved, contender.precision
        )
        fastest = min(
            (other.name for other in group if other.baseline),
            key=lambda name: self.timings[name].median,
        )
        return KernelRecord(
            **percentiles_us(self.timings[contender.name]),
            threads=self.threads,
            environment=self.environment,
            shape=case.shape,
            layer=case.layer,
            out_features=case.out_features,
            in_features=case.in_features,
            tokens=case.tokens,
            structure=case.structure,
            sparsity=_sparsity(case),
            values=case.values,
            contender=contender.name,
            baseline=contender.baseline,
            chosen=contender.chosen,
            max_error=self.errors.get(contender.name),
            moved_bytes=moved,
            dense_gflops=2 * dense * case.tokens / seconds / 1e9,
            gb_per_s=moved / seconds / 1e9,
            roofline_us=floor_us,
            roofline_percent=100 * floor_us / (seconds * 1e6),
            bound=bound,
            dense_baseline=fastest,
            speedup=self.timings[fastest].median / seconds,
            roofline=self.roofline.to_dict(),
        )

    def _moved_bytes(self, contender: Contender) -> int:
        """Weight once, input once, output once; inputs and outputs are float32."""
        case = self.case
        weight = self.packed.size().total
        if contender.baseline:
            width = {"fp32": 4, "bf16": 2, "int8": 1}[contender.precision]
            weight = case.out_features * case.in_features * width
        return weight + 4 * case.tokens * (case.in_features + case.out_features)


def _sparsity(case: KernelCase) -> float:
    """Part of the weights that the structure and the case leave out."""
    structure = Structure.parse(case.structure)
    return 1 - structure.n / structure.m if structure.kind == "nm" else case.sparsity or 0.0


def stored_values(packed: PackedWeight) -> int:
    """Values that the packed form keeps, padding included: the products a kernel has to make."""
    return packed.values.numel() * (2 if packed.spec.values.dtype == "int4" else 1)
