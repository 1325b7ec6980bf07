"""The examples of docs/integrations.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sparse_runtime as sr


def test_the_examples_run(
    make_checkpoint: Any,
    checkout_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_checkpoint(name="my-encoder")
    monkeypatch.chdir(tmp_path)
    text = (checkout_root / "docs" / "integrations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert "(1, 32) Linear(in_features=48" in capsys.readouterr().out
    for model in (names["model"], names["embedder"], names["extract"].model):
        assert sum(isinstance(module, sr.Linear) for module in model.modules()) == 12
    assert names["runtime"].task == "base"
