"""sparse-runtime export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Make = Callable[..., Path]


@pytest.mark.parametrize("form", ["hugging-face", "onnx-dynamic"])
def test_a_packed_model_is_written(
    form: str, command: Callable[..., Result], packed: Make, tmp_path: Path
) -> None:
    if form.startswith("onnx"):
        pytest.importorskip("onnx")
    out = tmp_path / "out"
    result = command("export", packed("base"), out, "--form", form)
    assert result.exit_code == 0, result.stderr
    weights = "model.onnx" if form.startswith("onnx") else "model.safetensors"
    assert {weights, "config.json"} <= {path.name for path in out.iterdir()}
    assert result.stdout == f"written to {out}\n"
    again = command("export", packed("base"), tmp_path / "again", "--form", form, "--json")
    assert json.loads(again.stdout) == {"directory": str(tmp_path / "again"), "form": form}


def test_an_empty_name_is_refused(command: Callable[..., Result], packed: Make) -> None:
    result = command("export", packed("base"), "", "--form", "hugging-face")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: OUT: expected a path, got an empty string\n"
