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
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Hugging Face checkpoint: a directory or a hub id.")
]
Packed = Annotated[
    str, typer.Argument(metavar="PACKED", help="Packed model: a directory or a hub id.")
]
Backend = Annotated[str, typer.Option(help="auto, cpu or reference.")]
Device = Annotated[str | None, typer.Option(help="Where to run.", show_default="cpu")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts run at a time.")]
MaxLength = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens to truncate a text to.", show_default="the model's"),
]


def example(command: str) -> str:
    """The last line of a command's help."""
    return f"Example: sparse-runtime {command}"
