"""What verify() found, as plain data; it prints as a table in a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Cosine:
    """Cosine between the two models' embeddings of each text."""

    mean: float
    minimum: float
    p5: float


@dataclass(frozen=True)
class Drift:
    """Distance from the original numbers.

    Attributes:
        name: what was compared, such as "logits".
        max_abs: largest absolute difference.
        relative: norm of the differences over norm of the originals.
    """

    name: str
    max_abs: float
    relative: float


@dataclass(frozen=True)
class Agreement:
    """Predictions of the packed model that equal the original's, of ``total``; see ``what``."""

    what: str
    equal: int
    total: int

    @property
    def share(self) -> float:
        """``equal / total``."""
        return self.equal / self.total


@dataclass(frozen=True)
class Spearman:
    """Rank correlation of each model's similarity of the pairs with the given scores."""

    pairs: int
    original: float
    packed: float

    @property
    def drop(self) -> float:
        """How much lower the packed model's is; negative where it is higher."""
        return self.original - self.packed


@dataclass(frozen=True)
class Implementation:
    """The packed model on ``backend`` against the same packed model on ``reference``.

    Pruning and quantization are in both, so this is the kernels' own error. In a quantized model
    a difference in the last bit may round an input to its other neighbour, which grows from layer
    to layer; so kernels are judged by the first layer, and ``output`` says where it ends.
    """

    backend: str
    reference: str
    texts: int
    first_layer: Drift
    output: Drift


@dataclass(frozen=True)
class Check:
    """One value held against its limit."""

    name: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        relation = "below" if self.name.startswith("min_") else "above"
        return f"{self.name}: {self.value:.6g} is {relation} the limit {self.limit:g}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify()` found. Prints as a table; `to_dict()` gives plain types for JSON.

    Attributes:
        packed: the packed model, as it was named.
        source: the original, as it was named.
        task: as ``SparseModel.task``, such as "base" or "sequence_classification".
        backend: backend of the packed model.
        device: where both ran.
        texts: inputs compared; a pair read as one input counts once.
        tokens: unmasked tokens compared.
        cosine: of the sentence embeddings.
        output: drift of the logits, or of the last hidden state of a bare encoder.
        layers: relative drift of the hidden states; the first is the embeddings'.
        agreement: None for a bare encoder and for regression.
        spearman: None where no scores were given.
        implementation: None where the reference backend itself was verified.
        non_finite: NaN and infinite outputs of the packed model.
        non_finite_original: NaN and infinite outputs of the original.
        checks: every value that had a limit.
        seconds: wall time.
    """

    packed: str
    source: str
    task: str
    backend: str
    device: str
    texts: int
    tokens: int
    cosine: Cosine
    output: Drift
    layers: tuple[Drift, ...]
    agreement: Agreement | None
    spearman: Spearman | None
    implementation: Implementation | None
    non_finite: int
    non_finite_original: int
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed; empty when all passed."""
        failures = [str(check) for check in self.checks if not check.passed]
        for model, count in (
            ("the packed model", self.non_finite),
            ("the original", self.non_finite_original),
        ):
            if count:
                failures.append(f"{count} outputs of {model} are NaN or infinite")
        return tuple(failures)

    @property
    def passed(self) -> bool:
        """Whether every value is within its limit and every output is finite."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings, numbers and None; NaN and infinity become None."""
        data = asdict(self)
        if self.agreement is not None:
            data["agreement"]["share"] = self.agreement.share
        if self.spearman is not None:
            data["spearman"]["drop"] = self.spearman.drop
        data |= {"passed": self.passed, "failures": self.failures}
        return _plain(data)

    def format(self) -> str:
        """The report as text, 100 columns wide."""
        from rich.console import Console

        console = Console(width=100, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __str__(self) -> str:
        return self.format()

    def __rich__(self) -> Group:
        """The report for a terminal."""
        from .view import as_tables

        return as_tables(self)


def _plain(value: Any) -> Any:
    """The same value as JSON has it: no tuples, and no NaN or infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
