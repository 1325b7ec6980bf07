"""What convert() refuses before it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, CheckpointError, is_packed


def check_texts(calibration: Any) -> None:
    """Refuse what is no list of texts."""
    if calibration is None:
        return
    if isinstance(calibration, str) or not isinstance(calibration, Sequence):
        raise TypeError(
            f"calibration: expected a list of texts, got {type(calibration).__name__}; "
            "list(...) makes one of an iterator"
        )
    strange = next((text for text in calibration if not isinstance(text, str)), None)
    if strange is not None:
        raise TypeError(f"calibration: expected a list of texts, got one with {strange!r} in it")


def refuse_requantizing(checkpoint: Checkpoint, arguments: dict[str, Any]) -> None:
    """The file's own integers and their meaning are what is packed."""
    plain = {
        "values": "auto",
        "scales": "row",
        "activations": "auto",
        "prune": None,
        "calibration": None,
    }
    asked = [
        f"{name}={arguments[name]!r}" for name, value in plain.items() if arguments[name] != value
    ]
    if asked:
        raise CheckpointError(
            f"{checkpoint.directory.name}: its linear layers are integers already "
            f"({checkpoint.layout}), which are kept as they are; leave {', '.join(asked)} out, or "
            "convert the float checkpoint that it was made from"
        )


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Refuse early what save would refuse after minutes of packing."""
    if target.is_dir():
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise ValueError(
                f"out_dir {target}: lies in the source {source}; choose another directory"
            )
        if any(target.iterdir()) and not (overwrite and is_packed(target)):
            raise FileExistsError(
                f"out_dir {target}: expected a new or an empty directory, got one with files; "
                "overwrite=True (--overwrite) replaces a packed model, and nothing else"
            )
    elif target.exists():
        raise FileExistsError(f"out_dir {target}: expected a directory, got a file")
