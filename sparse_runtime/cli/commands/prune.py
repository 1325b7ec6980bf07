"""sparse-runtime prune"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import BatchSize, Debug, Json, LocalFilesOnly, Quiet, Revision
from ..output import quiet_transformers, show
from .prune_one_shot import one_shot
from .prune_search import (
    FormatsOption,
    KeepFlopsOption,
    PermuteOption,
    RangesOption,
    ShapeOption,
    SmoothOption,
    TargetOption,
    search_plan,
)


def prune(
    model: Annotated[
        str, typer.Option(help="Hugging Face checkpoint to compress: a directory or a hub id.")
    ],
    out: Annotated[str, typer.Option(help="New directory for the compressed checkpoint.")],
    data: Annotated[str, typer.Option(help="Calibration texts, one a line; - is stdin.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="N:M, block:RxC@SPARSITY or unstructured@SPARSITY.", show_default="prune nothing"
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="alps, obs, wanda or magnitude.")] = "alps",
    values: Annotated[str | None, typer.Option(help="int8 or int4.", show_default="floats")] = None,
    target: TargetOption = None,
    formats: FormatsOption = None,
    shape: ShapeOption = "8x128",
    permute: PermuteOption = False,
    keep_flops: KeepFlopsOption = None,
    smooth: SmoothOption = False,
    ranges: RangesOption = None,
    scales: Annotated[
        str, typer.Option(help="Weights that share a scale: row, tensor, chunk:R or group:G.")
    ] = "row",
    activations: Annotated[
        str, typer.Option(help="auto, dynamic (uint8, per token), symmetric (int8, per token).")
    ] = "auto",
    damping: Annotated[
        float, typer.Option(help="Added to the Hessian, as a share of its mean diagonal.")
    ] = 0.01,
    include: Annotated[
        str | None, typer.Option(help="Regular expression: only these layers.", show_default="all")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Regular expression: not these layers.", show_default="none")
    ] = None,
    texts: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many.", show_default="all")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens to truncate a text to.")] = 256,
    batch_size: BatchSize = 32,
    state: Annotated[
        str | None,
        typer.Option(
            help="Directory for finished layers; the same command goes on from them.",
            show_default="none",
        ),
    ] = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune and quantize a checkpoint in view of some text; convert packs the result."""
    quiet_transformers()
    progress = False if quiet else None
    report = one_shot(
        model,
        out,
        data,
        target=target,
        formats=formats,
        shape=shape,
        plan=search_plan(keep_flops, permute, smooth, progress),
        ranges=ranges,
        texts=texts,
        damping=damping,
        to=to,
        method=method,
        values=values,
        scales=scales,
        activations=activations,
        include=include,
        exclude=exclude,
        max_length=max_length,
        batch_size=batch_size,
        state_dir=state,
        progress=progress,
        revision=revision,
        local_files_only=local_files_only,
    )
    show(report, as_json)
