"""How a command ends: one line on stderr and an exit code, whatever went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

FAILED = 1
USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell reports a program that the signal ended

_DEBUG = "sparse_runtime.debug"


class WrongUsage(typer.BadParameter):
    """Options that contradict each other, or one without another that it belongs to."""

    def format_message(self) -> str:
        """The message alone, which names the options itself."""
        return self.message


class Group(TyperGroup):
    """A group of commands that turns exceptions into one line and an exit code."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Parse `args`, run the command and leave through SystemExit."""
        options["standalone_mode"] = False
        try:
            code = super().main(args, *others, **options)
            sys.stdout.flush()
        except OSError as error:
            # Help is printed before any command is invoked.
            _silence_stdout()
            if isinstance(error, BrokenPipeError):
                sys.exit(PIPE_CLOSED)
            _report(describe(error))
            sys.exit(FAILED)
        except Exception as error:
            # Errors of the command line: typer has no public name for their common class.
            if not hasattr(error, "format_message"):
                raise
            message = one_line(error.format_message())
            # Without any argument there is no message, and the help was shown instead.
            if message:
                context = getattr(error, "ctx", None)
                path = context.command_path if context else "sparse-runtime"
                _report(f"{message} (see {path} --help)")
            sys.exit(USAGE)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            result = super().invoke(ctx)
            # A reader that has gone shows at the latest here, where it can still be answered.
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            _report("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(PIPE_CLOSED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):
                raise
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            _report(describe(error))
            raise typer.Exit(FAILED) from error


def show_tracebacks(ctx: typer.Context, value: bool) -> None:
    """Callback of --debug."""
    if value:
        ctx.meta[_DEBUG] = True


def describe(error: Exception) -> str:
    """An exception as one line; classes that say nothing to a user are left out."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return one_line(f"{where}{error.strerror}")
    message = one_line(str(error))
    if isinstance(error, (ValueError, TypeError, RuntimeError, OSError)) and message:
        return message
    # Not one of the errors that we word ourselves.
    return one_line(f"{type(error).__name__}: {message} (--debug shows where)")


def one_line(text: str) -> str:
    """Lines joined to one."""
    return " ".join(text.split())


def _report(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _silence_stdout() -> None:
    """Let Python flush stdout at exit without a complaint about the closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return  # stdout is not a file here
