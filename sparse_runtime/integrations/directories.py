"""New directories that other programs read: there as a whole, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..store.companions import companion_files
from ..store.directories import naming


def check_new(out_dir: Path) -> None:
    """Raise FileExistsError unless a directory can be written at ``out_dir``."""
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise FileExistsError(f"out_dir {out_dir}: expected a new or an empty directory")


@contextmanager
def new_directory(
    out_dir: Path, config: Mapping[str, Any], extra_files: Path | None
) -> Iterator[Path]:
    """Write config.json and the files that travel along; the caller writes the weights.

    Args:
        out_dir: new or empty (:func:`check_new`).
        config: the fields of config.json.
        extra_files: a directory whose tokenizer and sentence-transformers files travel along.

    Yields:
        A directory beside ``out_dir``, which takes its name at the end of the block and is removed
        where that fails.
    """
    companions = {} if extra_files is None else companion_files(Path(extra_files))
    with naming(out_dir):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        yield staging
        for place, path in companions.items():
            (staging / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staging / place)
        text = json.dumps(dict(config), indent=2, sort_keys=True)
        (staging / "config.json").write_text(text + "\n", encoding="utf-8")
        staging.chmod(0o755)
        staging.replace(out_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as transformers writes it."""
    # Each with memory of its own, as safetensors wants it.
    separate = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(separate, path, metadata={"format": "pt"})
    path.chmod(0o644)
