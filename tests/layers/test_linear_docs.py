"""The examples of docs/linear.md run, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sparse_runtime as sr


def test_the_examples_run(checkout_root: Path) -> None:
    text = (checkout_root / "docs" / "linear.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    # torch.compile of the last block would start a C++ compiler.
    for block in blocks:
        exec(block.replace("fullgraph=True", "fullgraph=True, backend='eager'"), names)
    assert len(blocks) == 5
    assert names["model"].up.spec.structure.kind == "nm"
    assert type(names["model"].head) is not sr.Linear
    assert str(names["other"].spec.structure) == "block:4x1"
