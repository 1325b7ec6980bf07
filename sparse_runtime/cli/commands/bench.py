"""sparse-runtime bench kernels | model

The benchmarks state their own options; these commands hand all arguments on to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.main import get_command

from ..errors import show_tracebacks
from ..options import example

app = typer.Typer(help="Measure kernels and models on this machine.", no_args_is_help=True)

# --help too belongs to the benchmark.
_HAND_ON: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@app.command("kernels", context_settings=_HAND_ON)
def kernels(ctx: typer.Context) -> None:
    """Time every kernel on the linear layers of real encoders."""
    from ...benchmarks.bench_kernels import main

    _run(main, ctx, "bench kernels --shape minilm --tokens 128 --structure 2:4")


@app.command("model", context_settings=_HAND_ON)
def model(ctx: typer.Context) -> None:
    """Time whole packed models against transformers."""
    from ...benchmarks.bench_model import main

    _run(main, ctx, "bench model ./packed --workload 8x128")


def _run(main: Callable[..., None], ctx: typer.Context, usage: str) -> None:
    arguments = [argument for argument in ctx.args if argument != "--debug"]
    show_tracebacks(ctx, len(arguments) < len(ctx.args))
    # One command alone takes the arguments itself, without a name before them.
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(epilog=example(usage))(main)
    code = get_command(alone).main(
        args=arguments, prog_name=ctx.command_path, standalone_mode=False
    )
    if code:
        raise typer.Exit(code)
