"""Linear layers on a GPU: ours against every library that runs the same weights, in one run.

    python -m sparse_runtime.benchmarks.gpu.linears --shape bert-base --tokens 128 4096

Every contender is captured in a CUDA graph over several copies of the layer, enough to exceed the
second-level cache as the layers of a model do, and replayed in turns; what no graph can hold is
queued behind a wait instead. "ours" takes floats and gives floats, quantization included; "product"
contenders leave out what surrounds the product.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.ceilings import measure_ceilings
from sparse_runtime.benchmarks.gpu.peers import (
    Call,
    Layer,
    cublas_bf16,
    cublas_int8,
    cusparse_fp32,
    cusparselt_bf16,
    cusparselt_int8,
    integers,
    torch_bsr,
    torchao_int8,
)
from sparse_runtime.benchmarks.gpu.records import append, results_path, without_times
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.gpu.timing import time_kernels
from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.linear import linear_cuda, linear_hopper
from sparse_runtime.kernels.linear.linear_cuda import MmaConfig, MmaWeight
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.tiles import Workspace
from sparse_runtime.ops import LinearWeight, PreparedLinear, choose
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.workspaces import workspace_for
from sparse_runtime.spec import Structure
from sparse_runtime.testing import (
    Timing,
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
)

CASES = (
    "dense int8",
    "dense bf16",
    "2:4 int8",
    "2:4 bf16",
    "unstructured@0.9 int8",
    "block:64x64@0.9 bf16",
    "block:64x64@0.9 int8",
    "block:32x32@0.9 bf16",
    "block:128x128@0.9 bf16",
    "block:16x16@0.9 bf16",
    "block:64x64@0.8 bf16",
    "block:64x64@0.95 bf16",
)
TOKENS = (16, 128, 1024, 4096, 16384)
UNCAPTURED = ("cusparse fp32",)
_FASTEST: dict[tuple[Any, ...], MmaConfig] = {}
CHECKED_ROWS = 64
MOST_COPIES = 24
MOST_CONFIGS = 4
"""Of a hand-written kernel, which are timed before the best takes part."""


@cache
def prepared(layer: Layer, dtype: torch.dtype) -> PreparedLinear:
    """What the drop-in Linear runs."""
    weights = [LinearWeight("layer", layer.packed, layer.bias.float().cpu())]
    return choose(weights, device=layer.weight.device, dtype=dtype).prepare()


@cache
def packed_for(layer: Layer, family: str, structure: str, dtype: torch.dtype) -> MmaWeight:
    """The weight in a hand-written kernel's order."""
    matrix = integers(layer) if dtype == torch.int8 else layer.weight
    return (linear_hopper if family == "hopper" else linear_cuda).pack(matrix, structure)


@cache
def workspace(device: torch.device, partials: int, counters: int) -> Workspace:
    """What launches that follow each other share, as those of an encoder do."""
    return workspace_for(device, partials, counters)


def forget() -> None:
    """Give up what was made of layers."""
    for made in (integers, prepared, packed_for, workspace):
        made.cache_clear()


def ours(layer: Layer, x: Tensor) -> Call:
    """What the drop-in Linear does, on a workspace as an encoder's.

    Made while a graph is captured, counters would be zeroed by a launch of their own.
    """
    linear = prepared(layer, x.dtype)
    if not isinstance(linear, CudaLinear):
        return partial(linear, x)
    space = workspace(x.device, *linear.workspace_needs(len(x)))
    return partial(linear.run, x, None, None, space)


def check(call: Call, layer: Layer, x: Tensor) -> None:
    """Hold the first rows of what is timed to the float64 oracle.

    Raises:
        AssertionError: they are further off than PyTorch's.
    """
    rows, bias = x[:CHECKED_ROWS].cpu(), layer.bias.float().cpu().to(x.dtype)
    oracle, dense = linear_oracle(rows, layer.packed, bias)
    y = call()
    assert isinstance(y, Tensor)
    assert_close_to_oracle(y[:CHECKED_ROWS].cpu(), oracle, dense, name="ours")


def library(layer: Layer, x: Tensor, family: str, structure: str, dtype: torch.dtype) -> Call:
    """The CUDA library's kernel with its epilogue (scales, bias, bf16 results), in the fastest of
    its configurations; integers take quantized rows."""
    integer = dtype == torch.int8
    weight = packed_for(layer, family, structure, dtype)
    outputs, inputs = layer.weight.shape
    q = x.mul(30).clamp(-127, 127).to(torch.int8)
    ones = torch.ones(len(x), device=x.device)
    rows = Quantized(q, inputs, ones, None, 1) if integer else x
    scale = torch.full((outputs,), 1e-3, device=x.device) if integer else None
    epilogue = Epilogue(weight_scale=scale, bias=layer.bias.float())
    target = Target(torch.empty(len(x), outputs, dtype=torch.bfloat16, device=x.device), outputs)

    def call(config: MmaConfig) -> Call:
        partials, counters = linear_cuda.workspace_needs(len(x), weight, config)
        space = Workspace(
            torch.empty(partials, device=x.device),
            torch.zeros(counters, dtype=torch.int32, device=x.device),
        )
        operands = (rows, weight, epilogue, None, target, "none", config, space)
        return partial(linear_cuda.linear, *operands)

    key = (family, dtype, structure, len(x), outputs, inputs)
    if key not in _FASTEST:
        product, sizes = "int8" if integer else "half", key[3:]
        if family == "hopper":
            configs = linear_hopper.candidates(product, structure, *sizes)[:MOST_CONFIGS]
        else:
            major, minor = torch.cuda.get_device_capability()
            configs = linear_cuda.candidates(product, *sizes, 10 * major + minor)[:MOST_CONFIGS]
        timings = time_kernels({str(config): [call(config)] for config in configs})
        medians = {n: t.median for n, t in timings.items() if isinstance(t, Timing)}
        if not medians:
            raise RuntimeError(next(iter(timings.values())))
        fastest = min(medians, key=medians.__getitem__)
        _FASTEST[key] = next(config for config in configs if str(config) == fastest)
    return call(_FASTEST[key])


def contenders(case: str) -> Iterator[tuple[str, Callable[[Layer, Tensor], Call]]]:
    """Name and maker of everyone who runs a case; dense bf16 always takes part.

    Libraries whose capture may fail come last: what PyTorch keeps of a failed capture is not known.
    """
    structure = Structure.parse(case.split()[0].partition("@")[0])
    integer = case.endswith("int8")
    yield "ours", ours
    yield "cublas bf16", cublas_bf16
    if integer:
        yield "cublas int8 product", cublas_int8
    if structure.kind == "dense" or str(structure) == "2:4":
        built = ("mma",) if linear_hopper.missing() else ("mma", "hopper")
        families = [family for family in built if cuda_loading.left_out(family) is None]
        # The dense kernel on the same weights is what the sparse one is compared with.
        for kind in dict.fromkeys(("dense", str(structure))):
            for name, dtype in (("int8", torch.int8), ("bf16", torch.bfloat16)):
                if name == "bf16" or integer:
                    for family in families:
                        make = partial(library, family=family, structure=kind, dtype=dtype)
                        yield f"{family} {kind} {name}", make
    if integer and structure.kind == "dense":
        yield "torchao int8 compiled", torchao_int8
    if structure.kind == "nm":
        yield "cusparselt bf16", cusparselt_bf16
        if integer:
            yield "cusparselt int8 product", cusparselt_int8
    if structure.kind == "block":
        yield "torch bsr bf16", torch_bsr
    if structure.kind == "unstructured":
        yield "cusparse fp32", cusparse_fp32


def run_case(layers: list[Layer], tokens: int, case: str) -> dict[str, Any]:
    """Time one case; every contender's microseconds, or why it did not run.

    Those outside of a graph say that they were "queued".
    """
    weight = layers[0].weight
    x = make_activations(tokens, weight.shape[1]).to(weight.device, torch.bfloat16)
    calls: dict[str, list[Call]] = {}
    failed: dict[str, dict[str, str]] = {}
    for name, make in contenders(case):
        try:
            with torch.no_grad():
                made = [make(layer, x) for layer in layers]
                if name == "ours":
                    check(made[0], layers[0], x)
                calls[name] = made
        except Exception as error:
            failed[name] = without_times(error)
    with torch.no_grad():
        timings = time_kernels(calls, uncaptured=UNCAPTURED)
    found: dict[str, dict[str, Any]] = {
        name: {"p50_us": timing.median * 1e6, "p20_us": timing.percentile(20) * 1e6}
        if isinstance(timing, Timing)
        else {"error": timing}
        for name, timing in timings.items()
    }
    for name in found.keys() & UNCAPTURED:
        found[name]["timed"] = "queued"
    return {"copies": len(layers), "contenders": found | failed}


class Case(NamedTuple):
    """What one line is about; its fields are the line's."""

    shape: str
    layer: str
    case: str
    tokens: int


def work(
    shapes: Sequence[str], layers: Sequence[str] | None, cases: Sequence[str], tokens: Sequence[int]
) -> list[Case]:
    """All of one layer's numbers of tokens together: they share its weights."""
    return [
        Case(shape, layer, case, count)
        for shape in shapes
        for layer in load_shape(shape).linears
        if not layers or layer in layers
        for case in cases
        for count in tokens
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["bert-base"])
    parser.add_argument("--layer", nargs="+", help="linears of the shape; all without it")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--case", nargs="+", default=list(CASES))
    parser.add_argument("--seconds", type=float, default=540.0, help="no case is begun later")
    parser.add_argument("--again", action="store_true", help="cases that are known already too")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    # Past this number torch.compile refuses: every case is another program to it.
    torch._dynamo.config.recompile_limit = 1000
    around = surroundings()
    path = results_path(options.out, around.device)
    append(path, "gpu_ceilings", {"ceilings": asdict(measure_ceilings())}, around)
    left = left_to_run(
        path,
        "gpu_linear",
        work(options.shape, options.layer, options.case, options.tokens),
        Case._asdict,
        around,
        again=options.again,
    )
    progress = tqdm(total=len(left))
    weights: tuple[str, ...] | None = None
    layers: list[Layer] = []
    while left and time.monotonic() < end:
        case = left.pop(0)
        progress.update()
        with end_is_kept(path, "gpu_linear", case._asdict(), around):
            outputs, inputs = size = load_shape(case.shape).linears[case.layer]
            if weights != case[:3]:
                weights = case[:3]
                forget()
                first = Layer.make(size, case.case)
                copies = math.ceil(2 * around.l2_bytes / first.weight.nbytes)
                layers = [first, *(first.copy() for _ in range(min(MOST_COPIES, copies) - 1))]
            found = run_case(layers, case.tokens, case.case)
            fields = {**case._asdict(), "out": outputs, "in": inputs}
            append(path, "gpu_linear", {**fields, **found}, around)
    if left:
        print(f"no time for {len(left)} cases, from {' '.join(map(str, left[0]))} on")


if __name__ == "__main__":
    main()
