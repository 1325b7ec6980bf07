"""verify(): the packed model against the original, on texts, within limits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...checkpoints import open_checkpoint
from ...encoders import SparseModel
from ...ops import get_backend
from ...store.directories import read_path
from ..thresholds import Thresholds
from .inputs import check_texts, read_scores
from .report import VerifyReport
from .trial import Trial

_DEFAULT = Thresholds()


def verify(
    packed: str | Path,
    source: str | Path,
    texts: Sequence[str] | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    scores: Sequence[float] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    min_cosine: float | None = _DEFAULT.min_cosine,
    min_text_cosine: float | None = _DEFAULT.min_text_cosine,
    max_relative_drift: float | None = _DEFAULT.max_relative_drift,
    min_agreement: float | None = _DEFAULT.min_agreement,
    max_spearman_drop: float | None = _DEFAULT.max_spearman_drop,
    max_implementation_error: float | None = _DEFAULT.max_implementation_error,
    progress: bool | None = None,
    finalise: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> VerifyReport:
    """Run a packed model and the dense original over texts, and compare what they say.

    The original runs in float32 in transformers' own class for the task, so the two share no code.
    A value outside of its limit raises nothing: the report has ``passed`` False and says why in
    ``failures``. NaN and infinite outputs always fail.

    Args:
        packed: directory or hub id of the packed model.
        source: directory or hub id of the checkpoint it was made from.
        texts: what to run; None takes the pairs or, without any, built-in sentences.
        pairs: pairs of texts. A sequence classifier or question answering model reads each pair
            as one input, every other model each text by itself.
        scores: similarity of each pair, for Spearman's correlation with the cosine of the pair's
            embeddings or with a regression head's output.
        batch_size: texts run at a time.
        max_length: tokens to truncate at; None takes the tokenizer's and the model's limit.
        backend: of the packed model: "auto", "cpu", "cuda" or "reference".
        device: where both models run; None is the CPU.
        dtype: the packed model's float type; None is float32.
        min_cosine: smallest allowed mean cosine of the sentence embeddings.
        min_text_cosine: smallest allowed cosine of any one text.
        max_relative_drift: largest allowed relative drift of the output.
        min_agreement: smallest allowed share of equal predictions.
        max_spearman_drop: how much lower Spearman's correlation may be.
        max_implementation_error: largest allowed relative difference between the backend and the
            reference backend after the first layer of the same packed model. None leaves this or
            any other limit unchecked.
        progress: show a progress bar; None shows it where stderr is a terminal.
        finalise: of the source, as it was given to convert.
        revision: of the source on the hub.
        token: hub token for the source.
        cache_dir: where the source's download is kept.
        local_files_only: never use the network.

    Returns:
        The report.

    Raises:
        TypeError: an argument is of another type, such as texts or pairs that are no texts.
        ValueError: an argument is out of range, or the source is not what was packed: another
            architecture, other sizes, another tokenizer, missing weights.
    """
    start = time.perf_counter()
    limits = Thresholds(
        min_cosine=min_cosine,
        min_text_cosine=min_text_cosine,
        max_relative_drift=max_relative_drift,
        min_agreement=min_agreement,
        max_spearman_drop=max_spearman_drop,
        max_implementation_error=max_implementation_error,
    )
    read_path("packed", packed)
    check_texts(texts, pairs)
    numbers = read_scores(scores, pairs)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer from 1, got {batch_size!r}")
    checkpoint = open_checkpoint(
        source,
        finalise=finalise,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    model = SparseModel.from_pretrained(
        packed,
        device=device,
        backend=backend,
        dtype=dtype,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    backend = get_backend(backend, model.device, model.dtype).name
    trial = Trial(model, backend, checkpoint, texts, pairs, numbers, max_length)
    trial.run(batch_size, progress)
    return trial.report(str(packed), str(source), limits, start)
