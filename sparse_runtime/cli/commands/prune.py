"""sparse-runtime prune"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Debug, Device, Json, Quiet
from ..output import quiet_transformers, show


def prune(
    model: Annotated[
        str, typer.Option(help="Hugging Face checkpoint to compress: a directory or a hub id.")
    ],
    out: Annotated[str, typer.Option(help="New directory for the compressed checkpoint.")],
    recipe: Annotated[str, typer.Option(help="Training recipe: a name, or a .yaml file.")],
    data: Annotated[
        str,
        typer.Option(
            help="Folder with train, dev and test (csv, tsv, jsonl) or texts.txt, or one file."
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.KEY=VALUE",
            help="Change a recipe, such as prune.epochs=3; * is every stage; may be repeated.",
            show_default=False,
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            metavar="STAGE=DIRECTORY",
            help="A model that stands for a stage's, such as a teacher; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dev: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the training part to choose by.")
    ] = 0.0,
    test: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the training part to report on.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of new heads, batches and dropout.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished training.")
    ] = False,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between the checkpoints that --resume goes on from.")
    ] = 500,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune, distil and quantize a checkpoint by training; convert packs the result."""
    from ...compress.training.data import load_data
    from ...compress.training.run import train

    quiet_transformers()
    report = train(
        model,
        recipe,
        load_data(data, dev=dev, test=test),
        out,
        seed=seed,
        changes=changes or (),
        resume=resume,
        given=_pairs(given),
        device=device or "cpu",
        save_every=save_every,
        progress=not quiet,
    )
    show(report, as_json)


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not name or not equals or not path or name in pairs:
            raise ValueError(f"--stage {text!r}: expected STAGE=DIRECTORY, each stage once")
        pairs[name] = path
    return pairs
