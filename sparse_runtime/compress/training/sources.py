"""The checkpoints that a training begins with: where they lie, and which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...checkpoints import Checkpoint, CheckpointError, open_checkpoint
from ...checkpoints.layouts import stated_quantization, unused_layers
from ..oneshot.loading import refuse_changed_layers

_PARTS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "1_Pooling/config.json"),
)
"""Of a checkpoint, what the result of a training depends on."""


def check_source(directory: Path) -> None:
    """Refuse a checkpoint whose files are not the float weights that transformers would train.

    Raises:
        CheckpointError: it is packed or quantized, lacks heads, or is of a layout that transformers
            would misread.
    """
    checkpoint = open_checkpoint(directory)
    refuse_changed_layers(checkpoint)
    _refuse_layouts(checkpoint, {unused_layers.LAYOUT.name})


def check_given(directory: Path) -> None:
    """The same for a model that stands for a stage; it may be what a quantizing stage has written.

    Raises:
        CheckpointError: as :func:`check_source`.
    """
    checkpoint = open_checkpoint(directory)
    if any(found.layout != stated_quantization.LAYOUT.name for found in checkpoint.recognised):
        refuse_changed_layers(checkpoint)
    _refuse_layouts(checkpoint, {unused_layers.LAYOUT.name, stated_quantization.LAYOUT.name})


def _refuse_layouts(checkpoint: Checkpoint, read: set[str]) -> None:
    others = [found.layout for found in checkpoint.recognised if found.layout not in read]
    if others:
        raise CheckpointError(
            f"{checkpoint.directory.name}: its weights are stored as {', '.join(others)}, which a "
            "recipe does not read; write them plainly first: sparse-runtime convert, then export "
            "--form hugging-face"
        )


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
