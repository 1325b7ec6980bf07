"""sparse-runtime prune"""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import WrongUsage
from ..options import BatchSize, Debug, Device, Json, LocalFilesOnly, Quiet, Revision
from ..output import quiet_transformers, show
from .prune_one_shot import one_shot, only_measure
from .prune_recipe import by_recipe
from .prune_search import (
    EvaluationsOption,
    FormatsOption,
    KeepFlopsOption,
    PermuteOption,
    RangesOption,
    SearchOption,
    SensitivityOption,
    ShapeOption,
    SmoothOption,
    TargetOption,
    TopOption,
    format_search,
    search_plan,
)

# Which half of the command an option belongs to.
_ONE_SHOT = (
    *("to", "method", "values", "target", "permute", "keep_flops", "smooth"),
    *("ranges", "scales", "activations", "damping", "include", "exclude", "texts", "max_length"),
    *("batch_size", "state"),
)
# What has no meaning where nothing is pruned.
_PRUNING = (
    *("to", "values", "target", "shape", "permute", "keep_flops", "smooth", "ranges", "scales"),
    *("activations", "include", "exclude"),
)
_SEARCHED = ("formats", "shape")
_RECIPE = (
    *("paper_out", "changes", "given", "dev", "test", "seed", "resume", "save_every"),
    *("pooling", "device", "search", "top", "evaluations"),
)


def prune(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="Hugging Face checkpoint to compress: a directory or a hub id.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Calibration texts, one a line, - is stdin; or, as with --recipe, a folder with "
            "train, dev and test (csv, tsv, jsonl) or texts.txt, or one such file."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="New directory for the compressed checkpoint.",
            show_default="none with --sensitivity alone",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Train by a recipe: a name, or a .yaml file.", show_default="one-shot"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="N:M, block:RxC@SPARSITY or unstructured@SPARSITY.", show_default="prune nothing"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="alps, obs, wanda, magnitude; exact_obs (small).")
    ] = "alps",
    values: Annotated[str | None, typer.Option(help="int8 or int4.", show_default="floats")] = None,
    target: TargetOption = None,
    formats: FormatsOption = None,
    shape: ShapeOption = None,
    sensitivity: SensitivityOption = None,
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
    paper_out: Annotated[
        str | None,
        typer.Option(
            help="Recipe: new directory for the result in its paper's own files too.",
            show_default="none",
        ),
    ] = None,
    search: SearchOption = None,
    top: TopOption = None,
    evaluations: EvaluationsOption = None,
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
            help="A model that stands for a recipe's stage, such as a teacher, and for the stages "
            "that served it alone; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dev: Annotated[
        float, typer.Option(min=0, max=0.9, help="Recipe: share of the rows to choose by.")
    ] = 0.0,
    test: Annotated[
        float, typer.Option(min=0, max=0.9, help="Recipe: share of the rows to report on.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Recipe: of heads, batches, dropout.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Recipe: go on with an unfinished training.")
    ] = False,
    save_every: Annotated[
        int, typer.Option(min=1, help="Recipe: steps between what --resume goes on from.")
    ] = 500,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="Recipe: how an encoder makes a vector of a text: auto, mean or cls.",
            show_default="the recipe's",
        ),
    ] = None,
    device: Device = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune and quantize a checkpoint in view of some text; convert packs the result.

    Without a recipe in one pass over calibration texts; with --recipe by training.
    """
    quiet_transformers(bars=not quiet)
    progress = False if quiet else None
    if recipe is not None:
        _refuse(context, ("sensitivity",), "measures without training; leave it or --recipe out")
        alone = _ONE_SHOT if search is not None else (*_ONE_SHOT, *_SEARCHED)
        _refuse(context, alone, "a recipe says this itself; --set STAGE.KEY=VALUE changes it")
        trained = by_recipe(
            model,
            _required(out),
            recipe,
            data,
            paper_out=paper_out,
            search=format_search(search, top, evaluations, formats, shape),
            changes=changes,
            given=given,
            dev=dev,
            test=test,
            seed=seed,
            resume=resume,
            save_every=save_every,
            pooling=pooling,
            device=device,
            progress=progress,
            revision=revision,
            local_files_only=local_files_only,
        )
        show(trained, as_json)
        if trained.paper is not None and not as_json:
            typer.echo("\n".join(["In its paper's own files:", *trained.paper.commands()]))
        return
    _refuse(context, _RECIPE, "belongs to training; give --recipe")
    if out is None and sensitivity is not None:
        _refuse(context, _PRUNING, "nothing is pruned without --out; give it, or leave this out")
        measured = only_measure(
            model,
            data,
            sensitivity,
            formats=formats,
            method=method if _stated(context, "method") else None,
            texts=texts,
            damping=damping,
            max_length=max_length,
            batch_size=batch_size,
            state_dir=state,
            progress=progress,
            revision=revision,
            local_files_only=local_files_only,
        )
        show(measured, as_json)
        return
    report = one_shot(
        model,
        _required(out),
        data,
        target=target,
        formats=formats,
        shape=shape,
        sensitivity=sensitivity,
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


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse what the command line states of one half of the command while the other runs."""
    for option in context.command.params:
        if option.name in names and _stated(context, option.name):
            raise WrongUsage(f"{option.opts[0]}: {why}")


def _required(out: str | None) -> str:
    if out is None:
        raise WrongUsage(
            "--out: expected a new directory for the compressed checkpoint; only --sensitivity "
            "works without"
        )
    return out


def _stated(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
