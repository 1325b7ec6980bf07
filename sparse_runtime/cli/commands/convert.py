"""sparse-runtime convert"""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import WrongUsage
from ..options import (
    Debug,
    Finalise,
    Json,
    LocalFilesOnly,
    Quiet,
    Revision,
    Source,
    finalise_options,
)
from ..output import quiet_transformers, show
from ..text_files import read_calibration


def convert(
    source: Source,
    out: Annotated[str, typer.Argument(help="Directory for the packed model.")],
    structure: Annotated[
        str,
        typer.Option(
            help="auto keeps what the zeros show; or dense, unstructured, N:M (prunes what does "
            "not fit), block:RxC."
        ),
    ] = "auto",
    values: Annotated[
        str, typer.Option(help="auto (int8), fp32, bf16, fp16, int8, int4.")
    ] = "auto",
    scales: Annotated[
        str, typer.Option(help="Rows that share a scale: row, tensor or chunk:R.")
    ] = "row",
    activations: Annotated[
        str,
        typer.Option(help="auto, dynamic (uint8, per token), symmetric (int8, per token), none."),
    ] = "auto",
    prune: Annotated[
        str | None,
        typer.Option(
            help="N:M, block:RxC@SPARSITY or unstructured@SPARSITY; by magnitude without "
            "--calibration.",
            show_default="nothing",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Texts in view of which to prune and round: one a line, or a table as prune's "
            "--data takes it; - is stdin.",
            show_default="none",
        ),
    ] = None,
    prune_method: Annotated[
        str | None,
        typer.Option(
            help="With --calibration: alps, obs, wanda or magnitude.", show_default="alps"
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="With --calibration: directory for finished layers; the same command goes on "
            "from them.",
            show_default="none",
        ),
    ] = None,
    crop: Annotated[
        str,
        typer.Option(
            help="Heads and neurons to remove: auto (zero or unread), fold (constant ones too, "
            "into a bias), none."
        ),
    ] = "auto",
    finalise: Finalise = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a packed model that is already there.")
    ] = False,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pack the linear layers of a checkpoint and write a packed model."""
    if calibration is None:
        _refuse_solving(prune_method, state)
    from ... import convert as pack

    if calibration is not None:
        quiet_transformers(bars=not quiet)
    report = pack(
        source,
        out,
        structure=structure,
        values=values,
        prune=prune,
        calibration=(
            None if calibration is None else read_calibration(calibration, "--calibration")
        ),
        prune_method=prune_method,
        state_dir=state,
        scales=scales,
        activations=activations,
        crop=crop,
        finalise=finalise_options(finalise),
        overwrite=overwrite,
        progress=False if quiet else None,
        revision=revision,
        local_files_only=local_files_only,
    )
    show(report, as_json)


def _refuse_solving(prune_method: str | None, state: str | None) -> None:
    """Refuse the options that mean nothing without --calibration."""
    if prune_method is not None:
        from ...tools.one_shot import read_method

        read_method(prune_method)
    for option, value in (("--prune-method", prune_method), ("--state", state)):
        if value is not None:
            raise WrongUsage(f"{option}: belongs to --calibration; leave it out, or give texts")
