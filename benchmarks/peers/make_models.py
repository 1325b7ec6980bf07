"""Makes the checkpoints of benchmarks/bench_peers.py: one directory a row, read by every side.

    python benchmarks/peers/make_models.py DIR [SHAPE ...]

DIR/models/SHAPE-ROW gets `checkpoint` (plain Hugging Face, zeros baked in), our packed forms beside
it, and the ONNX files of the `export` environment in DIR. What is there stays.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sparse_runtime as sr
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.models import random_packed, transformers_model

ROWS: dict[str, tuple[str, float | None]] = {
    "dense": ("dense", None),
    "sparse-block1x4-80": ("block:1x4", 0.8),
    "sparse-block4x1-80": ("block:4x1", 0.8),
    "sparse-block1x4-90": ("block:1x4", 0.9),
    "sparse-block4x1-90": ("block:4x1", 0.9),
    "sparse-unstructured-90": ("unstructured", 0.9),
    "sparse-unstructured-95": ("unstructured", 0.95),
    "sparse-unstructured-97": ("unstructured", 0.97),
}
ONNX_FILES = ("model.onnx", "model_qdq.onnx", "model_integer.onnx")
HERE = Path(__file__).resolve().parent


def make(folder: Path, shape: str, row: str) -> None:
    """One checkpoint in all its forms."""
    structure, sparsity = ROWS[row]
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        packed = random_packed(load_shape(shape), structure, sparsity, "fp32")
        model = transformers_model(packed)
        del model.pooler  # encoders are compared, and most exports leave it out
        model.save_pretrained(checkpoint)
    for values in ("int8", "fp32", *(("bf16",) if row == "dense" else ())):
        if not (folder / values).exists():
            sr.convert(checkpoint, folder / values, structure=structure, values=values)
    if not all((folder / name).exists() for name in ONNX_FILES):
        python = folder.parent.parent / "export" / "bin" / "python"
        subprocess.run([python, HERE / "export.py", checkpoint, folder], check=True)


def main() -> None:
    """Every row of every shape asked for."""
    home, shapes = Path(sys.argv[1]).resolve(), sys.argv[2:] or ["bert-base", "minilm"]
    for shape in shapes:
        for row in ROWS:
            print(f"{shape}-{row}", flush=True)
            make(home / "models" / f"{shape}-{row}", shape, row)


if __name__ == "__main__":
    main()
