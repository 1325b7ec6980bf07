"""Products on a GPU: every kernel of ours and every library's, with the weight in memory and in L2.

    python -m sparse_runtime.benchmarks.gpu.gemms --shape bert-base --case "2:4 int8"

Kernels of ours end the product themselves (scales, bias; 4 bytes a result where integers are
multiplied); "product" contenders are a library's bare product. Each runs in the fastest of its
configurations (Triton's in their default), checked against PyTorch, and all take turns, dense and
sparse. "ordered" permutes the inputs of an unstructured weight as an encoder may.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.ceilings import measure_ceilings
from sparse_runtime.benchmarks.gpu.clocks import Clocks
from sparse_runtime.benchmarks.gpu.records import append, results_path, without_times
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.gpu.timing import time_kernels
from sparse_runtime.formats import PackedWeight
from sparse_runtime.formats.reorder import reorder_columns
from sparse_runtime.kernels.nm.input_order import find_input_order
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda.choosing import why_not
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.family import Family
from sparse_runtime.ops.cuda.machine import machine_of
from sparse_runtime.ops.cuda.stacked import StackedLayers, stack_layers
from sparse_runtime.ops.cuda.trial import Trial
from sparse_runtime.testing import Timing, make_activations, make_packed

SHAPES = ("bert-base", "bert-large", "minilm")
TOKENS = (4096, 128, 16384, 1024, 65536)
"""What matters most first: where time runs out, the rest is left."""

CASES = (
    "dense int8", "2:4 int8", "unstructured@0.9 int8 ordered", "unstructured@0.9 int8",
    "dense bf16", "2:4 bf16", "unstructured@0.9 bf16 ordered", "unstructured@0.9 bf16",
    "block:64x64@0.9 bf16", "block:64x64@0.9 int8", "block:32x32@0.9 bf16", "block:32x32@0.9 int8",
    "block:128x128@0.9 bf16", "block:128x128@0.9 int8", "block:16x16@0.9 bf16",
    "block:16x16@0.9 int8", "block:16x64@0.9 bf16", "block:16x64@0.9 int8",
    "dense fp16", "2:4 fp16", "block:64x64@0.9 fp16", "unstructured@0.9 fp16",
    "1:4 int8", "2:8 int8", "1:4 bf16", "2:8 bf16",
)  # fmt: skip
TYPES = {"int8": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the activations, by the weights' values."""

MOST_CONFIGS = 4
MOST_COPIES = 24
SEARCH_ROUNDS, ROUNDS = 3, 11

Call = Callable[[], object]
_SEARCHED: dict[tuple[Any, ...], int] = {}


class Contender(NamedTuple):
    """One way to multiply, ready to run.

    Attributes:
        cold: the product on several copies of the weight.
        warm: the product on one.
        config: of a kernel of ours, as text; None of a library.
    """

    cold: Sequence[Call]
    warm: Call
    config: str | None


def make_layers(shape: tuple[int, int], case: str, device: torch.device) -> StackedLayers:
    """A random weight of a case such as "unstructured@0.9 int8 ordered"."""
    weight = LinearWeight("layer", _packed(shape, case), make_activations(1, shape[0])[0])
    dtype = TYPES[case.split()[1]]
    return stack_layers(LinearRequest((weight,), device, dtype))


@cache  # the same weight for every number of tokens
def _packed(shape: tuple[int, int], case: str) -> PackedWeight:
    form, values, *how = case.split()
    structure, _, sparsity = form.partition("@")
    packed = make_packed(shape, structure, float(sparsity) if sparsity else None, values=values)
    return reorder_columns(packed, find_input_order(packed.unpack())) if how else packed


def kernel(layers: StackedLayers, tokens: int, copies: int, *, family: Family) -> Contender:
    """A family's fastest configuration; raises RuntimeError where its result is wrong."""
    packed = family.pack(layers)
    machine = machine_of(layers.matrix.device)
    # Each of Triton's is compiled, a second or more; tuning is what measures them.
    most = 1 if family.name.startswith("triton.") else MOST_CONFIGS
    configs = family.configs(packed, layers.problem, tokens, machine)[:most]
    trials = {str(config): Trial(family, config, layers, packed, tokens) for config in configs}
    name = next(iter(trials))
    if len(trials) > 1:
        runs = {name: trial.copies(copies) for name, trial in trials.items()}
        timings = time_kernels(runs, rounds=SEARCH_ROUNDS)
        medians = {n: t.median for n, t in timings.items() if isinstance(t, Timing)}
        if not medians:
            raise RuntimeError(timings[name])
        name = min(medians, key=medians.__getitem__)
    chosen = trials[name]
    if reason := chosen.wrong():
        raise RuntimeError(reason)
    return Contender(chosen.copies(copies), chosen.launch, None if name == "None" else name)


def library(
    layers: StackedLayers, tokens: int, copies: int, *, make: Callable[[Tensor, Tensor], Call]
) -> Contender:
    """A library's bare product."""
    matrix = layers.matrix
    x = torch.randn(tokens, matrix.shape[1], device=matrix.device)
    x = x.mul(30).clamp(-127, 127).to(torch.int8) if matrix.dtype == torch.int8 else x.to(matrix)
    cold = [make(x, matrix.clone()) for _ in range(copies)]
    return Contender(cold, make(x, matrix), None)


def int_mm(x: Tensor, matrix: Tensor) -> Call:
    """cuBLASLt's integers."""
    return partial(torch._int_mm, x, matrix.t())


def mm(x: Tensor, matrix: Tensor) -> Call:
    """cuBLASLt's floats."""
    return partial(torch.mm, x, matrix.t())


def cusparselt(x: Tensor, matrix: Tensor) -> Call:
    """cuSPARSELt's 2:4, by the algorithm that its own search finds fastest."""
    packed = torch._cslt_compress(matrix)
    out = torch.int32 if matrix.dtype == torch.int8 else None
    how: dict[str, Any] = {"out_dtype": out, "transpose_result": True}
    key = (matrix.dtype, tuple(matrix.shape), len(x))
    if key not in _SEARCHED:
        _SEARCHED[key] = int(torch._cslt_sparse_mm_search(packed, x.t(), **how))
    return partial(torch._cslt_sparse_mm, packed, x.t(), alg_id=_SEARCHED[key], **how)


def contenders(layers: StackedLayers) -> Iterator[tuple[str, Callable[..., Contender]]]:
    """Name and maker of everyone who multiplies by such a weight, dense kernels among them.

    cuSPARSELt, whose capture may fail, comes last: what PyTorch keeps of it is not known.
    """
    machine = machine_of(layers.matrix.device)
    found: dict[str, Callable[..., Contender]] = {
        family.name: partial(kernel, family=family)
        for family in FAMILIES
        if why_not(family, layers.problem, layers.epilogue, machine) is None
    }
    if layers.matrix.dtype == torch.int8:
        found["torch._int_mm product"] = partial(library, make=int_mm)
    else:
        found["cublaslt product"] = partial(library, make=mm)
    if "cusparselt" in found:
        found["cusparselt"] = found.pop("cusparselt")
    if layers.problem.structure == "2:4":
        found["cusparselt searched product"] = partial(library, make=cusparselt)
    yield from found.items()


def run_case(layers: StackedLayers, tokens: int, copies: int) -> dict[str, dict[str, Any]]:
    """Every contender's microseconds with the weight in memory and in L2, or why it did not run."""
    ready: dict[str, Contender] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in contenders(layers):
        try:
            ready[name] = make(layers, tokens, copies)
            found[name] = {"config": ready[name].config}
        except Exception as error:  # a compiler's or a library's: the others go on
            found[name] = without_times(error)
    runs: dict[str, dict[str, Sequence[Call]]] = {
        "cold_us": {name: contender.cold for name, contender in ready.items()},
        "warm_us": {name: [contender.warm] for name, contender in ready.items()},
    }
    for field, calls in runs.items():
        for name, timing in time_kernels(calls, rounds=ROUNDS).items():
            if isinstance(timing, Timing):
                found[name][field] = timing.median * 1e6
            else:
                found[name]["error"] = timing
    return found


Entry = tuple[str, str, tuple[int, int], int, str]


def work(shapes: Sequence[str], tokens: Sequence[int], cases: Sequence[str]) -> Iterator[Entry]:
    """Shape, layer, size, tokens and case: all of the first number of tokens, then the next."""
    for count, shape in product(tokens, shapes):
        for (layer, size), case in product(load_shape(shape).linears.items(), cases):
            yield shape, layer, size, count, case


def named(entry: Entry) -> dict[str, Any]:
    """What a line says of it."""
    shape, layer, _, tokens, case = entry
    return {"shape": shape, "layer": layer, "tokens": tokens, "case": case}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--case", nargs="+", default=list(CASES))
    parser.add_argument("--seconds", type=float, default=540.0, help="no case is begun later")
    parser.add_argument("--again", action="store_true", help="cases that are known already too")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    around = surroundings()
    path = results_path(options.out, around.device)
    append(path, "gpu_ceilings", {"ceilings": asdict(measure_ceilings())}, around)
    device = torch.device("cuda", torch.cuda.current_device())
    every = list(work(options.shape, options.tokens, options.case))
    left = left_to_run(path, "gpu_gemm", every, named, around, again=options.again)
    with Clocks() as clocks, torch.no_grad():
        while left and time.monotonic() < end:
            entry = left.pop(0)
            _, _, size, tokens, case = entry
            start = time.monotonic()
            with end_is_kept(path, "gpu_gemm", named(entry), around):
                layers = make_layers(size, case, device)
                copies = math.ceil(2 * around.l2_bytes / layers.matrix.nbytes)
                found = run_case(layers, tokens, min(MOST_COPIES, max(2, copies)))
                fields = {**named(entry), "out": size[0], "in": size[1]}
                fields |= {"rest": layers.problem.rest, "contenders": found}
                append(path, "gpu_gemm", {**fields, "clocks": clocks.since(start)}, around)
    if left:
        print(f"no time for {len(left)} cases, from {left[0]} on")


if __name__ == "__main__":
    main()
