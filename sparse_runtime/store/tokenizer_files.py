"""Which files a tokenizer consists of."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Patterns; one that is there is enough."""


def check_tokenizer(directory: Path) -> None:
    """Raise ValueError unless a directory holds the files of a tokenizer."""
    if not has_tokenizer(directory):
        raise ValueError(
            f"{directory.name}: no tokenizer ({', '.join(TOKENIZER_FILES)}); save the tokenizer "
            "into the model's directory"
        )


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer.

    Without them, transformers makes an empty tokenizer that knows no word.
    """
    return any(any(directory.glob(pattern)) for pattern in TOKENIZER_FILES)
