"""One finished run of the suite, a line of JSON; a run that has its line is not run again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

KIND = "repro"
RESULTS = Path(__file__).resolve().parent.parent / "results" / "repro.jsonl"


@dataclass(frozen=True)
class Run:
    """What one experiment gave on one task with one seed.

    Attributes:
        experiment: its name in the table of experiments.
        task: data it was trained and measured on.
        seed: of the training.
        scale: "full", "long", "quick" or "smoke".
        metric: "accuracy" or "spearman".
        packed: the metric on the test part, of the packed model run by our "cpu" backend.
        trained: the same as the writer of the checkpoint measured it (transformers, float32, fake
            quantization where there was any); None where nobody did.
        dense: the metric of the dense FP32 model of this task and seed, run by transformers.
        sparsity: share of zeros in the encoder's matrices.
        linears_bytes: packed matrices of the encoder, indices and scales included.
        weights_bytes: model.safetensors.
        directory_bytes: the packed directory.
        structures: form -> matrices packed in it.
        seconds: making the checkpoint, the dense model's training not counted.
        steps: optimizer steps in them; 0 for one-shot.
        settings: what was changed in the recipe, or the arguments of the one-shot call.
        environment: as every record of benchmarks has it.
    """

    experiment: str
    task: str
    seed: int
    scale: str
    metric: str
    packed: float
    trained: float | None
    dense: float
    sparsity: float
    linears_bytes: int
    weights_bytes: int
    directory_bytes: int
    structures: dict[str, int]
    seconds: float
    steps: int
    settings: list[str]
    environment: dict[str, Any]

    @property
    def share(self) -> float:
        """Of the dense FP32 model's metric that is left."""
        return self.packed / self.dense

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a run the same run."""
        return self.experiment, self.task, self.seed, self.scale


@dataclass(frozen=True)
class Latency:
    """How long one pass takes.

    Attributes:
        experiment: name, or the peer's.
        task: whose model it was.
        threads: used.
        batch: sequences.
        length: tokens of the longest.
        tokens: without padding.
        p50_ms: median of all rounds.
        passes: counted.
        environment: as every record of benchmarks has it.
    """

    experiment: str
    task: str
    threads: int
    batch: int
    length: int
    tokens: int
    p50_ms: float
    passes: int
    environment: dict[str, Any]


def append(record: Run | Latency, path: Path) -> None:
    """Add a line."""
    kind = KIND if isinstance(record, Run) else f"{KIND}-latency"
    append_line({"kind": kind, **asdict(record)}, path)


def append_line(line: dict[str, Any], path: Path) -> None:
    """Add a line of any kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def read(path: Path) -> tuple[list[Run], list[Latency]]:
    """Runs and latencies of a file; of what is there twice, the last line counts.

    Latencies are those of one machine and number of threads, the ones that were measured last:
    others do not compare.
    """
    runs: dict[Any, Run] = {}
    latencies: dict[Any, Latency] = {}
    last: tuple[str | None, int] | None = None
    for line in lines(path):
        kind = line.pop("kind", None)
        if kind == KIND:
            run = Run(**_known(line, Run))
            runs[run.key] = run
        elif kind == f"{KIND}-latency":
            one = Latency(**_known(line, Latency))
            latencies[one.experiment, one.task, one.threads, one.batch, one.tokens] = one
            last = one.environment.get("device"), one.threads
    return list(runs.values()), [
        one for one in latencies.values() if (one.environment.get("device"), one.threads) == last
    ]


def lines(path: Path) -> Iterable[dict[str, Any]]:
    """Every line of a file, of whatever kind; none where there is no file."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield json.loads(line)


def _known(line: dict[str, Any], kind: type) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in line.items() if name in names}
