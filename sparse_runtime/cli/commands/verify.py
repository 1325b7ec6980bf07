"""sparse-runtime verify"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...tools.thresholds import Thresholds
from ..errors import FAILED
from ..options import (
    Backend,
    BatchSize,
    Debug,
    Device,
    Finalise,
    Json,
    LocalFilesOnly,
    MaxLength,
    Packed,
    Quiet,
    Revision,
    Source,
    finalise_options,
)
from ..output import quiet_transformers, show
from ..text_files import read_pairs, read_texts

_DEFAULT = Thresholds()


def _limit(text: str | float) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number or 'none', got {text!r}") from None


def _option(text: str) -> Any:
    return typer.Option(
        help=text, parser=_limit, metavar="NUMBER|none", rich_help_panel="Limits; none leaves out"
    )


def verify(
    packed: Packed,
    source: Source,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="One text a line; - is stdin.", show_default="built-in sentences"
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Tab-separated, with a header: sentence1, sentence2 and, where known, score.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = None,
    backend: Backend = "auto",
    device: Device = None,
    min_cosine: Annotated[
        float | None, _option("Mean cosine of the embeddings.")
    ] = _DEFAULT.min_cosine,
    min_text_cosine: Annotated[
        float | None, _option("Cosine of any one text's embedding.")
    ] = _DEFAULT.min_text_cosine,
    max_relative_drift: Annotated[
        float | None, _option("Relative drift of logits, or of the last hidden state.")
    ] = _DEFAULT.max_relative_drift,
    min_agreement: Annotated[
        float | None, _option("Share of equal predictions.")
    ] = _DEFAULT.min_agreement,
    max_spearman_drop: Annotated[
        float | None, _option("Loss of Spearman correlation.")
    ] = _DEFAULT.max_spearman_drop,
    max_implementation_error: Annotated[
        float | None, _option("Relative difference of kernels from the reference after one layer.")
    ] = _DEFAULT.max_implementation_error,
    finalise: Finalise = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a packed model with its dense original, which transformers runs."""
    lines = None if texts is None else read_texts(texts)
    rows, scores = (None, None) if pairs is None else read_pairs(pairs)
    from ... import verify as compare

    quiet_transformers(bars=not quiet)
    report = compare(
        packed,
        source,
        lines,
        pairs=rows,
        scores=scores,
        batch_size=batch_size,
        max_length=max_length,
        backend=backend,
        device=device,
        min_cosine=min_cosine,
        min_text_cosine=min_text_cosine,
        max_relative_drift=max_relative_drift,
        min_agreement=min_agreement,
        max_spearman_drop=max_spearman_drop,
        max_implementation_error=max_implementation_error,
        progress=False if quiet else None,
        finalise=finalise_options(finalise),
        revision=revision,
        local_files_only=local_files_only,
    )
    show(report, as_json)
    if not report.passed:
        raise typer.Exit(FAILED)
