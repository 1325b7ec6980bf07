"""The commands, by name.

Nothing here imports torch or transformers: a command does, when it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .commands import bench, convert, export, information, inspection, prune, run, tuning, verify
from .errors import Group
from .options import example

app = typer.Typer(
    name="sparse-runtime",
    cls=Group,
    help="Open, pack, verify and run pruned and quantized transformer encoders.",
    epilog="Exit codes: 0 success, 1 error or failed verification, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command("info", epilog=example("info --json"))(information.info)
app.command("inspect", epilog=example("inspect ./my-pruned-bert"))(inspection.inspect)
app.command("convert", epilog=example("convert ./my-bert ./packed --structure 2:4"))(
    convert.convert
)
app.command(
    "prune",
    epilog=example(
        "prune --model ./my-bert --out ./sparse --to 2:4 --values int8 --data texts.txt"
    ),
)(prune.prune)
app.command(
    "verify", epilog=example("verify ./packed ./my-bert --pairs sts.tsv --min-cosine 0.995")
)(verify.verify)
app.command("run", epilog=example('run ./packed "A first text." "A second one."'))(run.run)
app.command("export", epilog=example("export ./packed ./dense --form hugging-face"))(export.export)
app.command("tune", epilog=example("tune ./packed --dtype bfloat16"))(tuning.tune)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the command `sparse-runtime`."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign shows "?" instead of ending the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="sparse-runtime")


def _open_closed_streams() -> None:
    """Give streams that were closed before the start (``>&-``) a place to lead to.

    Else the first file that is opened would take standard output's descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
