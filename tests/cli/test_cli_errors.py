"""How commands end: exit codes, one line on stderr, nothing where a pipe is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import sparse_runtime as sr

Command = Callable[..., Result]
Make = Callable[[str], Path]


def start(*arguments: object, root: Path, **options: int) -> subprocess.Popen[bytes]:
    """`python -m sparse_runtime` in a process of its own, which Ctrl-C reaches.

    A shell's background job, as these tests may be, is begun with that signal ignored.
    """

    def reset() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "sparse_runtime", *map(str, arguments)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=reset if os.name == "posix" else None,
        **options,
    )


def test_help_needs_neither_torch_nor_transformers(checkout_root: Path) -> None:
    program = (
        "import sys\n"
        "from sparse_runtime.cli import main\n"
        "sys.argv = ['sparse-runtime', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)"
    )
    for arguments, code in (["--help"], 0), (["verify", "--help"], 0), (["convert", "a"], 2):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=checkout_root,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr


def test_the_module_is_the_command(checkout_root: Path) -> None:
    process = start("--version", root=checkout_root)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.decode().strip(), err) == (0, sr.__version__, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "No such command 'frob'. (see sparse-runtime --help)"),
        (["inspct", "x"], "No such command 'inspct'. Did you mean 'inspect'?"),
        (["convert"], "Missing argument 'SOURCE'. (see sparse-runtime convert --help)"),
        (["info", "--frob"], "No such option: --frob"),
        (["run", "m", "a", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["run", "m", "a", "--file", "b"], "expected either texts, --file, --pairs, or"),
        (["run", "m"], "expected either texts, --file, --pairs, or"),
        (["run", "m", "-", "b"], "expected either texts or - alone"),
        (["convert", "m", "o", "--state", "s"], "--state: belongs to --calibration"),
        (["convert", "m", "o", "--prune-method", "obs"], "--prune-method: belongs to --calibrat"),
        (["run", "m", "--question", "why"], "--question and --context belong together"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(
    command: Command, arguments: list[str], message: str
) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "no/such/dir"], "no/such/dir: no such directory"),
        (["convert", "{source}", "{out}", "--structure", "3:2"], "3:2"),
        (["convert", "{source}", "{out}", "--values", "int9"], "int9"),
        (["convert", "{source}", "{out}", "--prune", "most"], "most"),
        (["convert", "{source}", "{source}"], "lies in the source"),
        (["convert", "{packed}", "{out}"], "already packed"),
        (["convert", "{source}", "{out}", "--prune-method", "foo"], "prune_method 'foo': expected"),
        (["verify", "{packed}", "{source}", "--texts", "{out}/none"], "No such file or directory"),
        (["verify", "{packed}", "{source}", "--texts", "{source}"], "Is a directory"),
        (["verify", "{packed}", "{source}", "--backend", "gpu"], "backend 'gpu'"),
        (["verify", "{source}", "{source}"], "convert"),
        (["run", "{source}", "a"], "convert"),
        (["run", "{packed}", "a", "--device", "toaster"], "toaster"),
        (["run", "{packed}", "a", "--max-length", "5"], "--max-length: an embedding model"),
        (["run", "{packed}", "a", "--top-k", "5"], "--top-k: belongs to masks"),
        (["run", "{packed}", "--file", os.devnull], "expected one text a line, got an empty file"),
        (["run", "{packed}", "-"], "standard input: expected one text a line, got an empty file"),
    ],
)
def test_bad_input_is_one_line_and_exits_with_1(
    command: Command,
    source: Make,
    packed: Make,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    names = {"source": source("base"), "packed": packed("base"), "out": tmp_path / "out"}
    result = command(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "error: two lines"),
        (KeyError("x"), "error: KeyError: 'x' (--debug shows where)"),
        (ValueError(), "error: ValueError: (--debug shows where)"),
        (PermissionError(13, "Permission denied", "/f"), "error: /f: Permission denied"),
    ],
)
def test_any_exception_is_one_line_and_a_traceback_only_with_debug(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(sr, "info", fail)
    result = command("info")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{line}\n")
    traced = command("info", "--debug")
    assert traced.exit_code == 1
    assert "Traceback (most recent call last)" in traced.stderr
    assert traced.stderr.endswith(f"{line}\n")
    # The next command starts without.
    assert "Traceback" not in command("info").stderr


def test_an_interrupted_command_exits_with_130(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sr, "info", interrupt)
    result = command("info")
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_signal_while_it_waits_for_input(checkout_root: Path, packed: Make) -> None:
    process = start("run", packed("base"), "-", root=checkout_root, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    # A full chunk comes back, then the command waits for more lines.
    process.stdin.write(b"a\n" * 256)
    process.stdin.flush()
    assert process.stdout.readline().endswith(b"a\n")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "error: interrupted"
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_reader_that_leaves_is_no_error(
    checkout_root: Path, packed: Make, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("hello\n" * 5000)
    process = start("run", packed("base"), "--file", texts, "--json", root=checkout_root)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'{"text": "hello"')
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert b"Traceback" not in err
    assert b"Broken" not in err
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device of Linux")
@pytest.mark.parametrize("arguments", ["--help", "run --help", "--version", "info"])
def test_output_that_cannot_be_written_is_an_error(checkout_root: Path, arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sparse_runtime", *arguments.split()],
            cwd=checkout_root,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="streams as a POSIX shell closes them")
def test_streams_that_are_closed_lead_nowhere(checkout_root: Path, packed: Make) -> None:
    def run(line: str) -> tuple[int, str, str]:
        done = subprocess.run(
            f"{sys.executable} -m sparse_runtime {line}",
            shell=True,
            cwd=checkout_root,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    assert run("info >&-") == (0, "", "")
    assert run("info --json 2>&-")[0] == 0
    code, out, err = run(f"run {packed('base')} - <&-")
    assert (code, out) == (1, "")
    assert err == "error: standard input: expected one text a line, got an empty file\n"
