"""What surrounds the products on a GPU: rows, padding and attention, against a copy's bandwidth.

    python -m sparse_runtime.benchmarks.gpu.rows --kernel attention norm --tokens 128 4096

Every launcher of ours that multiplies by no weight, in bf16, with the bytes that it must move: each
operand once. A "quantized" one writes dynamic uint8 rows too, as in an encoder. "cold" runs take
turns on copies of the operands that exceed the second-level cache; "warm" ones find theirs in it.
Every result of ours is checked against PyTorch before it is timed, and other attentions' too.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.ceilings import measure_ceilings
from sparse_runtime.benchmarks.gpu.clocks import Clocks
from sparse_runtime.benchmarks.gpu.records import append, results_path, without_times
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.row_runs import (
    Maker,
    Run,
    Work,
    attention,
    embedding,
    lengths_of,
    norm,
    quantize,
    repad_and_pool,
    scan_and_unpad,
)
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.gpu.timing import time_kernels
from sparse_runtime.testing import Timing

SHAPES = ("bert-base", "minilm", "bert-large")
TOKENS = (4096, 128, 1024)
LENGTHS = ("equal", "ragged")
MOST_COPIES = 256
ROUNDS = 11

KERNELS: dict[str, Callable[[Work], Iterator[tuple[str, Maker]]]] = {
    "attention": attention,
    "norm": norm,
    "quantize": quantize,
    "embedding": embedding,
    "scan and unpad": scan_and_unpad,
    "repad and pool": repad_and_pool,
}
BY_ROWS = ("norm", "quantize", "embedding")
"""Sequences' lengths make no difference to these."""


def run_case(kernel: str, work: Work, l2_bytes: int, copy_gb_s: float | None) -> dict[str, Any]:
    """Bytes and microseconds of every contender, and the share of a copy's bandwidth that it
    reaches with operands in memory; or why it did not run."""
    ready: dict[str, list[Run]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in KERNELS[kernel](work):
        try:
            first = make()
            first.call()
            first.check()
            copies = min(MOST_COPIES, max(2, math.ceil(2 * l2_bytes / first.moved)))
            ready[name] = [first, *(make() for _ in range(copies - 1))]
            found[name] = {"bytes": first.moved}
        except Exception as error:  # a compiler's or a wrong result's: the others go on
            found[name] = without_times(error)
    runs = {
        "cold_us": {name: [run.call for run in own] for name, own in ready.items()},
        "warm_us": {name: [own[0].call] for name, own in ready.items()},
    }
    for field, calls in runs.items():
        for name, timing in time_kernels(calls, rounds=ROUNDS).items():
            if not isinstance(timing, Timing):
                found[name]["error"] = timing
                continue
            found[name][field] = timing.median * 1e6
            if field == "cold_us" and copy_gb_s is not None:
                rate = found[name]["bytes"] / timing.median / 1e9
                found[name]["copy_share"] = rate / copy_gb_s
    return found


def cases(
    kernels: Sequence[str], shapes: Sequence[str], tokens: Sequence[int]
) -> Iterator[tuple[str, str, int, str]]:
    """Kernel, shape, tokens, kind of lengths: all of the first number of tokens, then the next."""
    for count, kind, kernel, shape in product(tokens, LENGTHS, kernels, shapes):
        if kind == "equal" or kernel not in BY_ROWS:
            yield kernel, shape, count, kind


def named(case: tuple[str, str, int, str]) -> dict[str, Any]:
    """The fields of a line that say which case it is."""
    return dict(zip(("kernel", "shape", "tokens", "lengths"), case, strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", nargs="+", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--shape", nargs="+", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--seconds", type=float, default=540.0, help="no case is begun later")
    parser.add_argument("--again", action="store_true", help="cases that are known already too")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    around, ceilings = surroundings(), measure_ceilings()
    path = results_path(options.out, around.device)
    append(path, "gpu_ceilings", {"ceilings": asdict(ceilings)}, around)
    every = list(cases(options.kernel, options.shape, options.tokens))
    left = left_to_run(path, "gpu_rows", every, named, around, again=options.again)
    with Clocks() as clocks, torch.no_grad(), tqdm(total=len(left)) as bar:
        while left and time.monotonic() < end:
            entry = left.pop(0)
            kernel, shape, tokens, kind = entry
            start = time.monotonic()
            with end_is_kept(path, "gpu_rows", named(entry), around):
                work = Work(load_shape(shape), lengths_of(tokens, kind))
                found = run_case(kernel, work, around.l2_bytes, ceilings.copy_gb_s)
                fields = {**named(entry), "sequences": len(work.lengths), "contenders": found}
                append(path, "gpu_rows", {**fields, "clocks": clocks.since(start)}, around)
            bar.update()
    if left:
        print(f"no time for {len(left)} cases, from {left[0]} on")


if __name__ == "__main__":
    main()
