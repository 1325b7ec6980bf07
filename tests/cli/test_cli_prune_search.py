"""`sparse-runtime prune` with options that search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import Result

from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.sensitivity import Sensitivity, SensitivityTable

Command = Callable[..., Result]
Make = Callable[[str], Path]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join("abcdefgh"[: 3 + i % 5]) for i in range(20)))
    return str(path)


def test_a_size_target(command: Command, source: Make, texts: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["prune", "--model", str(source("labels")), "--out", out, "--data", texts]
    options = ["--target", "size=0.7x", "--formats", "dense int8,2:4 int4", "--json", "--quiet"]
    result = command(*arguments, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["target"]
    assert found["cost"] <= found["budget"]
    assert set(found["formats"].values()) == {"dense int8", "2:4 int4"}


def test_everything_before_one_format(
    command: Command, source: Make, texts: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    arguments = ["prune", "--model", str(source("labels")), "--out", out, "--data", texts]
    options = ["--to", "2:4", "--values", "int8", "--permute", "--smooth", "--ranges", "mse"]
    result = command(*arguments, *options, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["arguments"]["plan"]
    assert plan["permute"] is True and plan["smooth"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "2:4 int8", "--to", "2:4"], "--formats: belongs to --target"),
        (["--target", "size=0.5x", "--to", "2:4"], "leave to (--to)"),
        (["--target", "size=0.5x", "--formats", " ,"], "--formats ' ,': expected one or more"),
        (["--target", "speed=2x"], "expected 'latency=0.6x'"),
        (["--target", "latency=1x", "--shape", "8"], "--shape '8'"),
        (["--to", "2:4", "--shape", "8x16"], "--shape: belongs to --target latency"),
        (["--target", "size=0.7x", "--shape", "8x16"], "--shape: belongs to --target latency"),
        (["--target", "size=0.7x", "--exclude", "query"], "exclude (--exclude): target (--target)"),
        (["--permute", "--keep-flops", "0.5"], "leave keep_flops (--keep-flops)"),
        (["--to", "unstructured@0.5", "--permute"], "expected one N:M or block pattern"),
    ],
)
def test_what_contradicts_is_refused(
    command: Command,
    source: Make,
    texts: str,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    arguments = ["prune", "--model", str(source("labels")), "--out", str(out), "--data", texts]
    result = command(*arguments, *options, "--quiet")
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
    assert not out.exists()


def test_sensitivities_alone(command: Command, source: Make, texts: str, tmp_path: Path) -> None:
    figure, state = tmp_path / "figures" / "layers.svg", tmp_path / "state"
    arguments = ["prune", "--model", str(source("labels")), "--data", texts, "--quiet"]
    options = ["--sensitivity", str(figure), "--formats", "dense int8,2:4 int4"]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = command(*arguments, *options, "--state", str(state), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["arguments"]["method"] == "obs"
    saved = json.loads(figure.with_suffix(".json").read_text())["units"]
    assert saved == found["sensitivity"]
    assert all(0 <= row["dense int8"] < row["2:4 int4"] for row in saved.values())
    assert "<svg" in figure.read_text() and "2:4 int4" in figure.read_text()
    assert len((state / "sensitivity.jsonl").read_text().splitlines()) == 2 * len(saved)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    kept = {state / "run.json", state / "sensitivity.jsonl"}
    assert written == {figure, figure.with_suffix(".json"), *kept}  # nothing is pruned
    again = command(*arguments, *options)
    assert again.exit_code != 0 and "is there already" in " ".join(again.stderr.split())


def test_sensitivities_of_a_target(
    command: Command, source: Make, texts: str, tmp_path: Path
) -> None:
    figure = tmp_path / "layers.png"
    arguments = ["prune", "--model", str(source("labels")), "--data", texts, "--quiet"]
    out = ["--out", str(tmp_path / "out"), "--target", "size=0.7x"]
    result = command(*arguments, *out, "--sensitivity", str(figure), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["target"]["sensitivity"]
    assert json.loads(figure.with_suffix(".json").read_text())["units"] == found
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--out: expected a new directory"),
        (["--recipe", "x"], "--out: expected a new directory"),
        (["--recipe", "x", "--sensitivity", "a.svg"], "--sensitivity: measures without training"),
        (["--sensitivity", "texts.txt/a.svg"], "texts.txt is a file; give another path"),
        (["--sensitivity", "texts.txt/b/a.svg"], "texts.txt is a file; give another path"),
        (["--sensitivity", "s/run.svg", "--state", "s"], "outside of the state directory s"),
        (["--sensitivity", "a.svg", "--state", "texts.txt"], "state_dir (--state) texts.txt"),
        (["--sensitivity", "a.svg", "--to", "2:4"], "--to: nothing is pruned without --out"),
        (["--sensitivity", "a.txt"], "expected a name that ends in .svg"),
        (["--sensitivity", "a.svg", "--formats", "2:4"], "expected a pattern and values"),
        (["--sensitivity", "a.svg", "--out", "o", "--to", "2:4"], "give a target, or leave --out"),
        (["--sensitivity", "a", "--out", "o", "--target", "size=1x"], "got 'no ending'"),
    ],
)
def test_sensitivities_that_are_refused(
    command: Command,
    source: Make,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["prune", "--model", str(source("labels")), "--data", texts, "--quiet"]
    result = command(*arguments, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "o").exists()


def test_a_figure_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = "encoder.layer.0.attention.self.query"
    row = Sensitivity(unit, LayerFormat.parse("dense int8"), 0.1)
    table = SensitivityTable((row,))

    def failing(self: Figure, path: Path, **options: object) -> None:
        Path(path).write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", failing)
        with pytest.raises(OSError, match="disk full"):
            table.save(tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []
    table.save(tmp_path / "a.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.svg"]
