"""info, inspect, convert, verify, tune and bench: what they print, and where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from typer.testing import Result

import sparse_runtime as sr

Command = Callable[..., Result]
Make = Callable[[str], Path]
COMMANDS = (
    "info",
    "inspect",
    "convert",
    "prune",
    "verify",
    "run",
    "export",
    "tune",
    "bench kernels",
    "bench model",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_and_gives_an_example(command: Command, name: str) -> None:
    result = command(*name.split(), "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: sparse-runtime {name}" in result.stdout
    assert f"Example: sparse-runtime {name}" in result.stdout
    assert "--json" in result.stdout


def test_help_and_version_of_the_whole(command: Command) -> None:
    for arguments in (["--help"], ["-h"]):
        result = command(*arguments)
        assert result.exit_code == 0
        for name in COMMANDS:
            assert name.split()[0] in result.stdout
    assert command("--version").stdout.strip() == sr.__version__
    # Without a command, the help is shown as an error of usage.
    nothing = command()
    assert nothing.exit_code == 2
    assert "Usage:" in nothing.output


def test_info(command: Command) -> None:
    data = json.loads(command("info", "--json").stdout)
    assert data["version"] == sr.__version__
    text = command("info").stdout
    assert "Backends" in text
    assert "reference" in text


def test_inspect(command: Command, source: Make) -> None:
    data = json.loads(command("inspect", source("base"), "--json").stdout)
    shapes = {tuple(matrix["shape"]) for matrix in data["matrices"]}
    assert (48, 32) in shapes
    text = command("inspect", source("base")).stdout
    assert "query" in text


def test_convert_then_verify(command: Command, source: Make, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    made = command("convert", source("base"), out, "--structure", "2:4", "--values", "int8")
    assert made.exit_code == 0, made.output
    assert "12 layers packed" in made.stdout
    assert str(out) in "".join(made.stdout.split())
    # A second time it is refused, unless it may replace.
    again = command("convert", source("base"), out)
    assert again.exit_code == 1
    assert again.stdout == ""
    assert again.stderr.startswith(f"error: out_dir {out}: expected a new or an empty directory")
    assert again.stderr.count("\n") == 1
    replaced = command("convert", source("base"), out, "--overwrite", "--json")
    assert replaced.exit_code == 0, replaced.output
    assert {layer["structure"] for layer in json.loads(replaced.stdout)["layers"]} == {"dense"}
    verified = command("verify", out, source("base"), "--quiet")
    assert verified.exit_code == 0, verified.output
    assert "passed" in verified.stdout


def test_every_option_of_convert_arrives(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "texts").write_text("one\ntwo\n")
    seen: dict[str, Any] = {}

    def convert(source: str, out: str, **arguments: Any) -> SimpleNamespace:
        seen.update(arguments, source=source, out=out)
        return SimpleNamespace(to_dict=lambda: {"nan": float("nan"), "deep": [(1, "é")]})

    monkeypatch.setattr(sr, "convert", convert)
    options = "--structure block:4x1 --values int4 --scales tensor --activations none --crop fold"
    options += " --prune 2:4 --state s"
    result = command(
        *["convert", "a", "b", *options.split(), "--overwrite", "--revision", "r"],
        *["--local-files-only", "--quiet", "--json"],
        *["--calibration", tmp_path / "texts", "--prune-method", "obs"],
        *["--finalise", "threshold=0.1", "--finalise", "file=a=b"],
    )
    assert seen == {
        "source": "a",
        "out": "b",
        "structure": "block:4x1",
        "values": "int4",
        "scales": "tensor",
        "crop": "fold",
        "activations": "none",
        "prune": "2:4",
        "prune_method": "obs",
        "state_dir": "s",
        "calibration": ["one", "two"],
        "finalise": {"threshold": "0.1", "file": "a=b"},
        "overwrite": True,
        "progress": False,
        "revision": "r",
        "local_files_only": True,
    }
    # NaN is no JSON, and a terminal may not know every letter.
    assert json.loads(result.stdout) == {"nan": None, "deep": [[1, "é"]]}
    assert result.stdout.isascii()


def test_a_failed_verification_exits_with_1_and_full_json(
    command: Command, source: Make, packed: Make, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n", encoding="utf-8")
    arguments = ["verify", packed("labels"), source("labels"), "--texts", texts, "--json"]
    good = command(*arguments)
    assert good.exit_code == 0, good.output
    data = json.loads(good.stdout)
    assert data["passed"] is True
    assert data["texts"] == 2
    # A cosine is never above 1, an agreement neither.
    bad = command(*arguments, "--min-cosine", "1.01", "--min-agreement", "none")
    assert bad.exit_code == 1
    data = json.loads(bad.stdout)
    assert data["passed"] is False
    assert [check["name"] for check in data["checks"] if not check["passed"]] == ["min_cosine"]
    assert "min_agreement" not in {check["name"] for check in data["checks"]}
    wrong = command(*arguments, "--min-cosine", "much")
    assert wrong.exit_code == 2
    assert "expected a number or 'none', got 'much'" in wrong.stderr


def test_verify_ranks_pairs_from_a_file(
    command: Command, source: Make, packed: Make, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    rows = ["score\tsentence2\tsentence1", "1\ta\tb", "2\tc d\tc", "3\te\te"]
    pairs.write_text("\n".join(rows), encoding="utf-8")
    result = command("verify", packed("base"), source("base"), "--pairs", pairs, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["spearman"]["pairs"] == 3
    assert data["texts"] == 6


def test_bench_hands_everything_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(
        shape: Annotated[list[str] | None, typer.Option()] = None,
        json_lines: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """A benchmark."""
        if shape == ["wrong"]:
            raise ValueError("shape 'wrong'\nis not known")
        print(shape, json_lines)

    for name in ("bench_kernels", "bench_model"):
        module = SimpleNamespace(main=main)
        monkeypatch.setitem(sys.modules, f"sparse_runtime.benchmarks.{name}", module)
    result = command("bench", "kernels", "--shape", "a", "--shape", "b", "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout == "['a', 'b'] True\n"
    failed = command("bench", "model", "--shape", "wrong")
    assert failed.exit_code == 1
    assert failed.stderr == "error: shape 'wrong' is not known\n"
    traced = command("bench", "model", "--shape", "wrong", "--debug")
    assert traced.exit_code == 1
    assert "Traceback" in traced.stderr
    unknown = command("bench", "kernels", "--frob")
    assert unknown.exit_code == 2
    assert (
        unknown.stderr
        == "error: No such option: --frob (see sparse-runtime bench kernels --help)\n"
    )


def test_bench_kernels_really_runs(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "kernels.jsonl"
    options = "--shape minilm --layer qkv --tokens 4 --structure dense --min-seconds 0.001"
    result = command("bench", "kernels", *options.split(), "--json", "--output", out)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert {record["tokens"] for record in records} == {4}
    assert len(out.read_text().splitlines()) == len(records) > 1


def test_tune_needs_a_gpu(command: Command, packed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_runtime.ops.cuda import device

    monkeypatch.setattr(device, "unavailable", lambda: "there is no CUDA device")
    result = command("tune", packed("base"))
    assert result.exit_code == 1
    assert result.stderr.strip() == "error: nothing to measure on: there is no CUDA device"
