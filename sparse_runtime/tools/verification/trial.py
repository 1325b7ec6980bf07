"""One verification: both models, their inputs, and what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ...checkpoints import Checkpoint
from ...encoders import SparseModel
from ...statistics import spearman
from ..thresholds import Thresholds
from .compare import AGREEMENT, Comparison, compared_numbers
from .embedding import Embedder
from .inputs import Text, Tokens, accepted_inputs, longest_input
from .measures import DriftMeter, cosines
from .models import check_same_network, check_same_tokens, load_original, load_tokenizer
from .report import (
    Agreement,
    Check,
    Cosine,
    Drift,
    Implementation,
    Spearman,
    VerifyReport,
)
from .texts import SENTENCES

REFERENCE = "reference"
_TEXTS_FOR_KERNELS = 4
_READS_PAIRS = ("sequence_classification", "question_answering")


class Trial:
    """Everything a verification needs, checked before anything runs.

    Args:
        model: the packed model.
        backend: which one the model runs on.
        checkpoint: the original.
        texts: as in ``verify``.
        pairs: as in ``verify``.
        scores: as in ``verify``.
        max_length: as in ``verify``.

    Raises:
        ValueError: the two are not the same network, or the scores do not suit the model.
    """

    def __init__(
        self,
        model: SparseModel,
        backend: str,
        checkpoint: Checkpoint,
        texts: Sequence[str] | None,
        pairs: Sequence[tuple[str, str]] | None,
        scores: Sequence[float] | None,
        max_length: int | None,
    ) -> None:
        self.model = model
        self.backend = backend
        config = check_same_network(model, checkpoint)
        self.scores = scores
        self.joint = model.task in _READS_PAIRS
        regression = model.task == "sequence_classification" and model.config.num_labels == 1
        if scores is not None and self.joint and not regression:
            raise ValueError(
                f"scores: a {model.task} model with {model.config.num_labels} outputs says no "
                "similarity; leave out scores, pairs alone are compared by their predictions"
            )
        self.embedder = Embedder(checkpoint.directory, model.task, model.config.hidden_size)
        self.inputs = self._texts(texts, pairs)
        self.first_pair = len(self.inputs) - self._pair_inputs(pairs)
        tokenizer = load_tokenizer(checkpoint.directory)
        limit = longest_input(tokenizer, model.max_length, self.embedder.max_length, max_length)
        self.tokens = Tokens(tokenizer, self.inputs, limit)
        check_same_tokens(model, self.inputs, self.tokens, limit)
        self.original = load_original(checkpoint, config, model.task, model.device)
        self.accepted = accepted_inputs(self.original)
        self.found = Comparison(model.task, model.config.problem_type, self.embedder)

    def run(self, batch_size: int, progress: bool | None) -> None:
        """Run both models over every text."""
        bar = tqdm(
            total=len(self.inputs),
            desc="verifying",
            unit="text",
            disable=None if progress is None else not progress,
        )
        with bar, torch.inference_mode():
            for batch in self.tokens.batches(batch_size, self.accepted, self.model.device):
                packed = self.model(**batch.inputs, output_hidden_states=True, return_dict=True)
                original = self.original(
                    **batch.inputs, output_hidden_states=True, return_dict=True
                )
                self.found.add(batch, packed, original)
                bar.update(len(batch.rows))

    def report(self, packed: str, source: str, limits: Thresholds, start: float) -> VerifyReport:
        """What was found, held against the limits."""
        found = self.found
        embeddings = found.in_order(found.embeddings), found.in_order(found.originals)
        agreement = None
        if found.predictions:
            agreement = Agreement(AGREEMENT[found.task], found.equal, found.predictions)
        cosine = _summary(cosines(*embeddings))
        drift = _drift(self._output_name(), found.output)
        correlation = self._spearman(embeddings)
        implementation = self._implementation()
        return VerifyReport(
            packed=packed,
            source=source,
            task=found.task,
            backend=self.backend,
            device=str(self.model.device),
            texts=len(self.inputs),
            tokens=found.tokens,
            cosine=cosine,
            output=drift,
            layers=tuple(
                _drift(f"layer {i}" if i else "embeddings", meter)
                for i, meter in enumerate(found.layers)
            ),
            agreement=agreement,
            spearman=correlation,
            implementation=implementation,
            non_finite=found.non_finite,
            non_finite_original=found.non_finite_original,
            checks=_checks(limits, cosine, drift, agreement, correlation, implementation),
            seconds=time.perf_counter() - start,
        )

    def _texts(
        self, texts: Sequence[str] | None, pairs: Sequence[tuple[str, str]] | None
    ) -> list[Text]:
        """Texts, then what the pairs add."""
        singles = SENTENCES if texts is None and pairs is None else texts or ()
        inputs: list[Text] = [self.embedder.prepare(text) for text in singles]
        for first, second in pairs or ():
            if self.joint:
                inputs.append((first, second))
            else:
                inputs += [self.embedder.prepare(first), self.embedder.prepare(second)]
        return inputs

    def _pair_inputs(self, pairs: Sequence[tuple[str, str]] | None) -> int:
        return len(pairs or ()) * (1 if self.joint else 2)

    def _spearman(self, embeddings: tuple[Tensor, Tensor]) -> Spearman | None:
        if self.scores is None:
            return None
        if self.joint:
            parts = self.found.logits, self.found.original_logits
            similar = [self.found.in_order(part)[self.first_pair :, 0] for part in parts]
        else:
            chosen = [part[self.first_pair :] for part in embeddings]
            similar = [cosines(part[::2], part[1::2]) for part in chosen]
        scores = torch.tensor(self.scores, dtype=torch.float64)
        packed, original = (spearman(part, scores) for part in similar)
        return Spearman(len(self.scores), original, packed)

    def _implementation(self) -> Implementation | None:
        """A few texts on both backends."""
        if self.backend == REFERENCE:
            return None
        reference = SparseModel.from_packed(
            self.model.packed,
            device=self.model.device,
            backend=REFERENCE,
            dtype=self.model.dtype,
        )
        order = self.tokens.by_length()
        # From the longest to the shortest.
        rows = order[:: max(1, len(order) // _TEXTS_FOR_KERNELS)][:_TEXTS_FOR_KERNELS]
        batch = self.tokens.batch(rows, self.accepted, self.model.device)
        packed, expected = (
            model(**batch.inputs, output_hidden_states=True, return_dict=True)
            for model in (self.model, reference)
        )
        output, first = DriftMeter(), DriftMeter()
        output.add(*(compared_numbers(self.model.task, x, batch.mask) for x in (packed, expected)))
        first.add(*(x.hidden_states[:2][-1][batch.mask] for x in (packed, expected)))
        return Implementation(
            self.backend,
            REFERENCE,
            len(rows),
            _drift("first layer", first),
            _drift(self._output_name(), output),
        )

    def _output_name(self) -> str:
        return "last hidden state" if self.model.task == "base" else "logits"


def _drift(name: str, meter: DriftMeter) -> Drift:
    return Drift(name, meter.max_abs, meter.relative)


def _summary(values: Tensor) -> Cosine:
    return Cosine(float(values.mean()), float(values.min()), float(values.quantile(0.05)))


def _checks(
    limits: Thresholds,
    cosine: Cosine,
    drift: Drift,
    agreement: Agreement | None,
    correlation: Spearman | None,
    implementation: Implementation | None,
) -> tuple[Check, ...]:
    """Every value that was measured and has a limit; a NaN is never within it."""
    values = {
        "min_cosine": cosine.mean,
        "min_text_cosine": cosine.minimum,
        "max_relative_drift": drift.relative,
        "min_agreement": None if agreement is None else agreement.share,
        "max_spearman_drop": None if correlation is None else correlation.drop,
        "max_implementation_error": None
        if implementation is None
        else implementation.first_layer.relative,
    }
    checks = []
    for name, value in values.items():
        limit = getattr(limits, name)
        if value is None or limit is None:
            continue
        passed = value >= limit if name.startswith("min_") else value <= limit
        checks.append(Check(name, value, limit, passed))
    return tuple(checks)
