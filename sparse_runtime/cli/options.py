"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import show_tracebacks

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error.",
        callback=show_tracebacks,
        is_eager=True,
        expose_value=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default=False)
]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Never use the network.")]
Finalise = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="What the files leave open, as the error that asks for it says; may be repeated.",
        show_default=False,
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Hugging Face checkpoint: a directory or a hub id.")
]
Packed = Annotated[
    str, typer.Argument(metavar="PACKED", help="Packed model: a directory or a hub id.")
]
Backend = Annotated[str, typer.Option(help="auto, cpu, cuda or reference.")]
Device = Annotated[str | None, typer.Option(help="Where to run.", show_default="cpu")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts run at a time.")]
MaxLength = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens to truncate a text to.", show_default="the model's"),
]


def finalise_options(pairs: list[str] | None) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary.

    Raises:
        ValueError: one has no "=", or a name comes twice.
    """
    options: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in options:
            raise ValueError(f"--finalise {pair!r}: expected NAME=VALUE, each name once")
        options[name] = value
    return options


def example(command: str) -> str:
    """The last line of a command's help."""
    return f"Example: sparse-runtime {command}"
