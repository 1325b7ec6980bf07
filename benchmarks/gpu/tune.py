"""Tune the linear layers of common encoders on this GPU, and keep the times as results.

    python -m sparse_runtime.benchmarks.gpu.tune --seconds 500

The times also go to the user's cache, where models that are loaded later find them. A copy of that
file lies beside the results: in kernels/tuned/, it is a table for this kind of GPU.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch

from sparse_runtime import SparseModel, tune
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.records import append, results_path
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.models import random_packed

MODELS = (
    "bert-base dense int8",
    "bert-base block:64x64@0.9 bf16",
    "bert-base dense bf16",
    "bert-base 2:4 int8",
    "bert-base unstructured@0.9 int8",
    "minilm dense int8",
    "bert-large dense int8",
    "distilbert dense int8",
)
TOKENS = (128, 1024, 4096)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="SHAPE STRUCTURE VALUES")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--seconds", type=float, default=500.0, help="for all models together")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    around = surroundings()
    path = results_path(options.out, around.device)
    end = time.monotonic() + options.seconds
    for i, name in enumerate(options.model):
        left = (end - time.monotonic()) / (len(options.model) - i)
        if left <= 0:
            print(f"no time left for {name}")
            continue
        shape, form, values = name.split()
        structure, _, sparsity = form.partition("@")
        packed = random_packed(
            load_shape(shape), structure, float(sparsity) if sparsity else None, values
        )
        model = SparseModel.from_packed(packed, device="cuda", dtype=torch.bfloat16)
        report = tune(model, seconds=left, tokens=options.tokens)
        append(path, "gpu_tuning", {"model": name, **report.to_dict()}, around)
        if report.found.path is not None:
            shutil.copy(report.found.path, path.with_name(f"{path.stem}-timings.json"))


if __name__ == "__main__":
    main()
