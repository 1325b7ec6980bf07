"""The checkpoints that a training begins with: where they lie, and which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

_PARTS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "1_Pooling/config.json"),
)
"""Of a checkpoint, what the result of a training depends on."""


def digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's configuration, weights and tokenizer, wherever it lies."""
    files = {path for pattern in _PARTS for path in directory.glob(pattern) if path.is_file()}
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(f"{path.relative_to(directory).as_posix()} {_sha256(path)}\n".encode())
    return whole.hexdigest()


def given_directories(given: Mapping[str, str | Path]) -> dict[str, Path]:
    """Stage -> directory of the model that stands for it.

    Raises:
        ValueError: there is no such directory.
    """
    found = {}
    for stage, place in given.items():
        found[stage] = Path(place).expanduser()
        if not found[stage].is_dir():
            raise ValueError(
                f"stage {stage!r}: {place}: no such directory; give that of a trained model "
                f"(--stage {stage}=DIRECTORY)"
            )
    return found


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            whole.update(part)
    return whole.hexdigest()
