"""The example of docs/compress runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sparse_runtime.tools.inspection import inspect


def test_the_example_runs(make_model, checkout_root: Path, tmp_path: Path, monkeypatch) -> None:
    text = (checkout_root / "docs" / "compress" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ids = torch.arange(12).view(2, 6)
    model = make_model("bert").train()
    monkeypatch.chdir(tmp_path)
    training = "model(input_ids=ids).logits.sum().backward()"
    assert "...  # train" in code
    exec(
        code.replace("...  # train", f"{training}  # train"),
        {
            "model": model,
            "tokenizer": None,
            "ids": ids,
        },
    )
    rows = [row for row in inspect(tmp_path / "packed").matrices if row.dtype == "int8"]
    assert len(rows) == 12
    assert {row.structure for row in rows} == {"2:4"}
