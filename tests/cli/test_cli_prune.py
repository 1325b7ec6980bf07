"""prune, and convert --calibration: from a file of texts to a checkpoint that packs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging
from typer.testing import Result

from sparse_runtime import store
from sparse_runtime.compress.oneshot.solvers import METHODS

Command = Callable[..., Result]
Make = Callable[[str], Path]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{chr(97 + i)} bc d{i % 7 * 'e'}\n\n" for i in range(20)))
    return path


def test_prune_then_convert(command: Command, source: Make, tmp_path: Path, texts: Path) -> None:
    arguments = ["--model", source("base"), "--data", texts, "--to", "2:4", "--values", "int8"]
    result = command("prune", *arguments, "--out", tmp_path / "sparse", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["texts"] == 20 and data["sparsity"] >= 0.5
    assert command("convert", tmp_path / "sparse", tmp_path / "packed").exit_code == 0
    one = command(
        "convert", source("base"), tmp_path / "one", "--prune", "2:4", "--calibration", texts
    )
    assert one.exit_code == 0, one.output
    packed, direct = store.load(tmp_path / "packed"), store.load(tmp_path / "one")
    for name, linear in packed.linears.items():
        assert str(linear.packed.spec.structure) == "2:4"
        assert torch.equal(linear.packed.unpack(), direct.linears[name].packed.unpack())


def test_table_and_options(
    command: Command,
    source: Make,
    tmp_path: Path,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "sparse"
    result = command(
        *("prune", "--model", source("base"), "--out", out, "--to", "block:1x4@0.5"),
        *("--method", "wanda", "--texts", "5", "--include", "intermediate", "--data", "-"),
        stdin=texts.read_bytes(),
    )
    assert result.exit_code == 0, result.output
    assert "by magnitude" in result.stdout and "intermediate" in result.stdout
    assert "5 texts" in result.stdout and "query" not in result.stdout


def test_errors_are_one_line(command: Command, source: Make, tmp_path: Path, texts: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n")
    common = ["prune", "--model", source("base"), "--out", tmp_path / "sparse"]
    for arguments, message in (
        (
            ["--data", empty, "--to", "2:4"],
            "empty.txt: expected texts, got empty ones only",
        ),
        (["--data", texts], "error: prune: nothing to do; give to (--to 2:4)"),
        (
            ["--data", texts, "--to", "2:4", "--damping", "0"],
            "error: damping 0.0: expected a share",
        ),
        (
            ["--data", texts, "--to", "unstructured@1.5"],
            "error: to (--to) 'unstructured@1.5': the sparsity is a number",
        ),
        (
            ["--data", texts, "--to", "magnitude@0.5"],
            "error: to (--to) 'magnitude@0.5': expected 'N:M', 'unstructured@SPARSITY'",
        ),
        (
            ["--data", texts, "--keep-flops", "1.5"],
            "error: keep_flops (--keep-flops) 1.5: expected a share",
        ),
        (
            ["--data", tmp_path / "none.txt", "--to", "2:4"],
            "none.txt: there is no such file; give one with a text a line",
        ),
        (
            ["--data", texts, "--recipe", tmp_path / "none.yaml"],
            "none.yaml: there is no such file; correct the path",
        ),
        (
            ["--data", texts, "--to", "2:4", "--out", tmp_path],
            "expected a new or an empty directory, got one with files; choose another (--out)",
        ),
    ):
        result = command(*common, *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
    assert not (tmp_path / "sparse").exists()


@pytest.mark.parametrize("command_name", ["prune", "convert"])
def test_quiet_shows_no_bar_of_transformers_either(
    command: Command, source: Make, tmp_path: Path, texts: Path, command_name: str
) -> None:
    options: list[object] = ["prune", "--model", source("base"), "--out", tmp_path / "out"]
    options += ["--data", texts, "--values", "int8", "--method", "magnitude"]
    if command_name == "convert":
        options = ["convert", source("base"), tmp_path / "out", "--calibration", texts]
        options += ["--prune", "2:4", "--prune-method", "magnitude"]
    result = command(*options, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    logging.enable_progress_bar()


def test_methods_and_values_are_named(
    command: Command, source: Make, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = " ".join(command("prune", "--help").stdout.split())
    assert all(method in shown for method in METHODS)
    arguments = ["--model", source("base"), "--out", tmp_path / "out", "--data", texts]
    result = command("prune", *arguments, "--values", "int5")
    assert "expected 'int8' or 'int4'" in " ".join(result.stderr.split())
    assert "bf16" not in result.stderr
