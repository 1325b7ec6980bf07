"""What is timed in the model benchmark, and the record that each time is kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.kernel_records import stored_values
from sparse_runtime.benchmarks.models import random_packed
from sparse_runtime.benchmarks.records import Environment, Record, percentiles_us
from sparse_runtime.benchmarks.workloads import Workload
from sparse_runtime.store import PackedModel, load
from sparse_runtime.testing import Timing

OURS = "sparse-runtime"
YARDSTICK = "transformers fp32"


@dataclass(frozen=True)
class Subject:
    """One model, made when its turn comes so that one at a time is in memory.

    Attributes:
        name: of the shape or the directory.
        origin: "random weights" or "packed directory".
        make: builds or loads it.
    """

    name: str
    origin: str
    make: Callable[[], PackedModel]

    @classmethod
    def of_directory(cls, directory: Path) -> Subject:
        """A packed model on disk."""
        return cls(directory.resolve().name, "packed directory", lambda: load(directory))

    @classmethod
    def of_shape(cls, name: str, structure: str, sparsity: float | None, values: str) -> Subject:
        """A named shape with random weights, pruned and packed."""
        shape = load_shape(name)
        return cls(
            name, "random weights", lambda: random_packed(shape, structure, sparsity, values)
        )


@dataclass(frozen=True)
class Weights:
    """How the linears of a packed model are stored; several ways are joined by " + ".

    ``sparsity`` is the part of the weights that is not stored, blocks' padding aside.
    """

    structure: str
    values: str
    sparsity: float
    packed_bytes: int

    @classmethod
    def of(cls, packed: PackedModel) -> Weights:
        """Read them off a packed model."""
        weights = [linear.packed for linear in packed.linears.values()]
        total = sum(w.spec.shape[0] * w.spec.shape[1] for w in weights)
        stored = sum(stored_values(w) for w in weights)
        return cls(
            structure=" + ".join(sorted({str(w.spec.structure) for w in weights})),
            values=" + ".join(sorted({w.spec.values.dtype for w in weights})),
            sparsity=round(max(0.0, 1 - stored / total), 4),
            packed_bytes=sum(w.size().total for w in weights),
        )


@dataclass(frozen=True)
class ModelRecord(Record):
    """One contender on one workload; docs/benchmarks.md describes the fields."""

    kind: ClassVar[str] = "model"

    model: str
    origin: str
    structure: str
    values: str
    sparsity: float
    packed_bytes: int
    workload: str
    batch: int
    length: int
    tokens: int
    contender: str
    backend: str
    baseline: bool
    drift: float
    sequences_per_s: float
    tokens_per_s: float
    speedup: float


@dataclass(frozen=True)
class ModelRun:
    """What the records of one model, workload and thread count share."""

    subject: Subject
    weights: Weights
    workload: Workload
    backend: str
    timings: Mapping[str, Timing]
    drifts: Mapping[str, float]
    threads: int
    environment: Environment

    def record(self, contender: str) -> ModelRecord:
        """The record of one contender, by its name in ``timings``."""
        workload, seconds = self.workload, self.timings[contender].median
        return ModelRecord(
            **percentiles_us(self.timings[contender]),
            threads=self.threads,
            environment=self.environment,
            model=self.subject.name,
            origin=self.subject.origin,
            structure=self.weights.structure,
            values=self.weights.values,
            sparsity=self.weights.sparsity,
            packed_bytes=self.weights.packed_bytes,
            workload=workload.name,
            batch=workload.batch,
            length=workload.length,
            tokens=workload.tokens,
            contender=contender,
            backend=self.backend if contender == OURS else "torch",
            baseline=contender != OURS,
            drift=self.drifts[contender],
            sequences_per_s=workload.batch / seconds,
            tokens_per_s=workload.tokens / seconds,
            speedup=self.timings[YARDSTICK].median / seconds,
        )
