"""sparse-runtime run"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Backend, BatchSize, Debug, Device, Json, MaxLength, Packed
from ..output import quiet_transformers, to_json
from ..text_files import STDIN, iterate_texts, read_pairs

if TYPE_CHECKING:
    from ..reader import Input

# Texts of one chunk are sorted by length, so a chunk of several batches wastes less on padding.
_BATCHES_A_CHUNK = 8


def run(
    packed: Packed,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; - reads them from stdin, one a line.", metavar="[TEXT]..."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="One text a line.", show_default=False),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of texts: tab-separated, with a header that names sentence1, sentence2.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="For question answering.", show_default=False)
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Text that holds the answer to --question.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Words shown for each mask.", show_default="5")
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a packed model: embeddings, labels, answers or masked words, whatever its head gives.

    With --json, every input gives one line of JSON.
    """
    inputs = _inputs(text, file, pairs, question, context)
    from ..predict import predictor

    quiet_transformers()
    predict = predictor(
        packed,
        device=device,
        backend=backend,
        batch_size=batch_size,
        max_length=max_length,
        top_k=top_k,
    )
    for chunk in _chunks(inputs, batch_size * _BATCHES_A_CHUNK):
        for result in predict(chunk):
            print(to_json(result.data) if as_json else result.text)
        # Whoever feeds stdin may wait for the answer.
        sys.stdout.flush()


def _inputs(
    texts: list[str] | None,
    file: str | None,
    pairs: str | None,
    question: str | None,
    context: str | None,
) -> Iterable[Input]:
    """What to run, from the one place that was named."""
    if (question is None) != (context is None):
        raise typer.BadParameter("--question and --context belong together")
    given = [texts or None, file, pairs, question]
    if texts and len(texts) > 1 and STDIN in texts:
        raise typer.BadParameter("expected either texts or - alone, which reads them from stdin")
    if sum(value is not None for value in given) != 1:
        raise typer.BadParameter(
            "expected either texts, --file, --pairs, or --question with --context"
        )
    if question is not None and context is not None:
        return [(question, context)]
    if pairs is not None:
        return read_pairs(pairs)[0]
    if file is not None:
        return iterate_texts(file)
    return iterate_texts(STDIN) if texts == [STDIN] else texts or []


def _chunks(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    iterator = iter(inputs)
    while chunk := list(islice(iterator, size)):
        yield chunk
