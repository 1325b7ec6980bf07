"""Tune the linear layers of common encoders on this GPU, and keep the times as results.

    python -m sparse_runtime.benchmarks.gpu.tune --seconds 500

The times also go to the user's cache, where models that are loaded later find them. A copy of that
file lies beside the results: in kernels/tuned/, it is a table for this kind of GPU. The next call
tunes what had no time and models of which some comparisons had none, which then have more of it.
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
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.models import random_packed
from sparse_runtime.ops.cuda.machine import machine_of
from sparse_runtime.ops.cuda.timings import cache_file, load

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
    parser.add_argument("--again", action="store_true", help="cases that are known already too")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    around = surroundings()
    path = results_path(options.out, around.device)
    copy = path.with_name(f"{path.stem}-timings.json")
    end = time.monotonic() + options.seconds
    left = left_to_run(
        path,
        "gpu_tuning",
        [{"model": name, "tokens": options.tokens} for name in options.model],
        dict,
        around,
        again=not bring_back(copy) or options.again,
    )
    while left and (seconds := (end - time.monotonic()) / len(left)) > 0:
        case = left.pop(0)
        with end_is_kept(path, "gpu_tuning", case, around):
            shape, form, values = str(case["model"]).split()
            structure, _, sparsity = form.partition("@")
            packed = random_packed(
                load_shape(shape), structure, float(sparsity) if sparsity else None, values
            )
            model = SparseModel.from_packed(packed, device="cuda", dtype=torch.bfloat16)
            report = tune(model, seconds=seconds, tokens=options.tokens)
            append(path, "gpu_tuning", {**case, **report.to_dict()}, around)
            if report.found.path is not None:
                shutil.copy(report.found.path, copy)
    if left:
        print(f"no time for {len(left)} models, from {left[0]['model']} on")


def bring_back(copy: Path) -> bool:
    """Whether this machine's times are in the user's cache, where a copy of them may be put."""
    machine = machine_of(torch.device("cuda", torch.cuda.current_device()))
    try:
        kept = cache_file(machine)
        if not kept.exists() and load(copy, machine, exact=True):
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy, kept)
        return kept.exists()
    except OSError:  # no home, or one that cannot be written
        return False


if __name__ == "__main__":
    main()
