"""Options of `sparse-runtime prune` that search: targets, channel orders, heads and neurons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import WrongUsage

if TYPE_CHECKING:
    from ...compress.oneshot.plans import SearchPlan
    from ...compress.training.format_search import FormatSearch
    from ...tools.layer_latency import Shape

TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Choose a format for each layer to meet it: latency=0.6x, latency=3ms, size=0.5x, "
        "size=6MB or flops=0.5x; shares are of dense INT8.",
        show_default="none",
    ),
]
FormatsOption = Annotated[
    str | None,
    typer.Option(
        help="For --target and --search: formats to choose from, such as 'dense int8,2:4 int8'.",
        show_default="dense and 2:4 in int8 and int4",
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        help="For latency=...: BATCHxTOKENS to measure, on this machine.",
        show_default="8x128",
    ),
]
SensitivityOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.svg",
        help="Draw what each layer alone changes in each of --formats, numbers beside it in "
        "FILE.json: those of --target, or without --out only this.",
        show_default="none",
    ),
]
SearchOption = Annotated[
    str | None,
    typer.Option(
        help="Recipe: choose the formats that it trains, by scores without training: a share of "
        "the FP32 size, such as 0.125, for each component type; or a target as --target has them, "
        "for each layer.",
        show_default="the recipe's formats",
    ),
]
TopOption = Annotated[
    int | None,
    typer.Option(
        help="For --search: train so many of the best and keep the best.", show_default="5"
    ),
]
EvaluationsOption = Annotated[
    int | None,
    typer.Option(
        help="For --search SHARE: score so many candidates, those that promise most.",
        show_default="all",
    ),
]
PermuteOption = Annotated[
    bool, typer.Option("--permute", help="First reorder channels so that the pattern keeps more.")
]
SmoothOption = Annotated[
    bool,
    typer.Option("--smooth", help="First even out channels, where no bit of a float changes."),
]
RangesOption = Annotated[
    str | None,
    typer.Option(
        help="Quantize inputs alike for all tokens, by min-max, percentile or mse.",
        show_default="token by token",
    ),
]
KeepFlopsOption = Annotated[
    float | None,
    typer.Option(
        help="First remove whole heads and neurons until this share of multiply-adds is left.",
        show_default="none removed",
    ),
]


def search_plan(
    keep_flops: float | None, permute: bool, smooth: bool, progress: bool | None
) -> SearchPlan | None:
    """What the options ask for besides a target, or None."""
    if keep_flops is None and not permute and not smooth:
        return None
    from ...compress.oneshot.plans import SearchPlan

    return SearchPlan(keep_flops=keep_flops, reorder=permute, smooth=smooth, progress=progress)


def format_search(
    search: str | None,
    top: int | None,
    evaluations: int | None,
    formats: str | None,
    shape: str | None,
) -> FormatSearch | None:
    """What the options ask a recipe to search for, or None.

    Raises:
        WrongUsage: they contradict each other.
        ValueError: they are not understood.
    """
    if search is None:
        given = {"--top": top, "--evaluations": evaluations}
        for option, value in given.items():
            if value is not None:
                raise WrongUsage(f"{option}: belongs to --search; leave it out, or give a search")
        return None
    from ...compress.training.format_search import FormatSearch
    from ...tools.layer_latency import latency_costs

    timed = search.strip().startswith("latency")
    if shape is not None and not timed:
        raise WrongUsage(
            "--shape: belongs to --search latency=...; leave it out, or give such a target"
        )
    return FormatSearch(
        search,
        top=5 if top is None else top,
        evaluations=evaluations,
        formats=tuple(read_formats(formats)),
        measure=latency_costs,
        shape=read_shape(shape) if timed else None,
    )


def read_shape(text: str | None) -> Shape:
    """Read "8x128"; None is that.

    Raises:
        ValueError: for any other text.
    """
    from ...tools.layer_latency import Shape
    from ...tools.targets import SHAPE

    if text is None:
        return SHAPE
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ValueError(f"--shape {text!r}: expected BATCHxTOKENS, such as 8x128")
    return Shape(int(match[1]), int(match[2]))


def read_formats(text: str | None) -> list[str]:
    """Read "dense int8,2:4 int8"; None is an empty list.

    Raises:
        ValueError: none is named.
    """
    if text is None:
        return []
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError(
            f"--formats {text!r}: expected one or more, such as 'dense int8,2:4 int8'; leave it "
            "out for the usual ones"
        )
    return found
