"""What a stage gave, written as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import StageReport

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_stage(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path,
    folder: Path,
    report: StageReport,
) -> None:
    """Write model, tokenizer and what tells a sentence encoder how to pool."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
