"""The examples of docs/encoders.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.store import save

EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_examples(
    checkout_root: Path,
    minilm: Path,
    make_packed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(minilm)
    theirs.config.architectures = ["BertModel"]
    packed = make_packed(theirs, "dense", "int8")
    packed.extra_files = minilm
    save(packed, tmp_path / "minilm-int8")
    monkeypatch.chdir(tmp_path)
    examples = EXAMPLE.findall((checkout_root / "docs/encoders.md").read_text())
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/encoders.md", "exec"), {})
    out = capsys.readouterr().out
    assert "torch.Size([2, 7, 384])" in out and "(2, 384)" in out
    assert "encoder.layer.*.output.dense: [384, 1536] dense int8 (6 layers" in out
