"""One peer with one model loaded, in its own process and environment.

    python worker.py PEER MODEL THREADS

Reads one JSON object a line, {"batch", "seq", "lengths", "runs", "seed", "save"}, and answers with
one: {"seconds": [...], "peak_mb"} for that many forward passes of random tokens, or {"error": ...}.
The first line that it writes, {"ready": versions} or {"error": ...}, says whether it runs at all.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEER, MODEL, THREADS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ["NM_DISABLE_ANALYTICS"] = "1"
# Answers leave by the real stdout; libraries that print go to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402  (the environment comes first)

SETTLE_SECONDS = 0.25
WARM_SECONDS = 0.15  # clocks rise again after the pause

Inputs = dict[str, Any]
Run = Callable[[Inputs], Any]


def openvino(precision: str) -> tuple[Run, str]:
    """OpenVINO on the ONNX file; INT8 by NNCF."""
    import openvino as ov

    core = ov.Core()
    # Quantizing takes longer than all passes: done once.
    quantized = MODEL / "openvino_int8.xml"
    known = precision == "int8" and quantized.exists()
    model = core.read_model(quantized if known else MODEL / "model.onnx")
    hint = {"fp32": "f32", "bf16": "bf16", "int8": None}[precision]
    if precision == "int8" and not known:
        import nncf

        rng = np.random.default_rng(0)
        data = [tokens(rng, 1, 128) for _ in range(8)]
        model = nncf.quantize(model, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER)
        ov.save_model(model, quantized, compress_to_fp16=False)
    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if hint is not None:
        config["INFERENCE_PRECISION_HINT"] = hint
    if precision == "int8" and "sparse" in MODEL.name:
        config["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = 0.75
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    return lambda x: request.infer(x)[compiled.output(0)], ov.__version__


def onnxruntime(precision: str) -> tuple[Run, str]:
    """ONNX Runtime; INT8 is its dynamic quantization."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    path = str(MODEL / "model.onnx")
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = str(MODEL / "model_dynamic.onnx")
        if not Path(path).exists():
            quantize_dynamic(str(MODEL / "model.onnx"), path, weight_type=QuantType.QInt8)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, x)[0], ort.__version__


def deepsparse(precision: str) -> tuple[Run, str]:
    """DeepSparse; INT8 from the file of integer products."""
    import shutil
    import tempfile

    import deepsparse as engine

    # It rewrites the file, and takes one shape: compiled at the first batch of each.
    source = MODEL / ("model_integer.onnx" if precision == "int8" else "model.onnx")
    engines: dict[tuple[int, int], Any] = {}

    def run(x: Inputs) -> Any:
        shape = x["input_ids"].shape
        if shape not in engines:
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copy(source, folder)
                engines[shape] = engine.Engine(
                    copy,
                    batch_size=shape[0],
                    num_cores=THREADS,
                    input_shapes=[list(shape)] * 3,
                )
        return engines[shape].run([x[name] for name in x])[0]

    return run, engine.__version__


def itrex(precision: str) -> tuple[Run, str]:
    """Intel Extension for Transformers' neural engine; INT8 from the QDQ file."""
    import importlib.metadata
    import importlib.util
    import types

    package = "intel_extension_for_transformers"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed in this environment")
    root = Path(spec.submodule_search_locations[0])
    # The packages above the engine import a training toolkit that it does not need.
    for name, path in ((package, root), (f"{package}.transformers", root / "transformers")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    engine = importlib.import_module(f"{package}.transformers.runtime.compile")
    source = {"fp32": "model.onnx", "int8": "model_qdq.onnx"}[precision]
    graph = engine.compile(str(MODEL / source))

    def run(x: Inputs) -> Any:
        names = ("input_ids", "token_type_ids", "attention_mask")
        outputs = graph.inference([x[name].astype(np.int32) for name in names])
        # Rows of all sequences, in memory that the next pass writes again.
        return next(iter(outputs.values())).reshape(*x["input_ids"].shape, -1)

    return run, importlib.metadata.version(package.replace("_", "-"))


def transformers(precision: str) -> tuple[Run, str]:
    """PyTorch: "fp32", "bf16", "int8" (dynamic), with "+compile"."""
    import torch
    from transformers import AutoModel
    from transformers import __version__ as version

    torch.set_num_threads(THREADS)
    base, _, compiled = precision.partition("+")
    dtype = torch.bfloat16 if base == "bf16" else torch.float32
    model = AutoModel.from_pretrained(
        MODEL / "checkpoint", dtype=dtype, add_pooling_layer=False
    ).eval()
    if base == "int8":
        from torch.ao.quantization import quantize_dynamic

        model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    if compiled:
        model = torch.compile(model)

    def run(x: Inputs) -> Any:
        with torch.inference_mode():
            out = model(**{name: torch.from_numpy(value) for name, value in x.items()})[0]
        return out.float().numpy()

    return run, f"{torch.__version__} / {version}"


def ours(backend: str) -> tuple[Run, str]:
    """This package: "cpu" or "reference"."""
    import torch

    import sparse_runtime as sr

    torch.set_num_threads(THREADS)
    dtype = torch.bfloat16 if MODEL.name == "bf16" else torch.float32
    model = sr.SparseModel.from_pretrained(MODEL, backend=backend, dtype=dtype)

    def run(x: Inputs) -> Any:
        with torch.inference_mode():
            output = model(**{name: torch.from_numpy(v) for name, v in x.items()})[0]
        return output.float().numpy()

    return run, sr.__version__


PEERS = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "deepsparse": deepsparse,
    "itrex": itrex,
    "transformers": transformers,
    "sparse-runtime": ours,
}


def tokens(
    rng: np.random.Generator, batch: int, seq: int, lengths: list[int] | None = None
) -> Inputs:
    """A batch of random tokens, padded beyond ``lengths``; None pads nothing."""
    ids = rng.integers(1000, 30000, (batch, seq)).astype(np.int64)
    mask = np.ones_like(ids)
    if lengths:
        mask = (np.arange(seq) < np.array(lengths)[:, None]).astype(np.int64)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
    }


def peak_mb() -> float:
    """The largest resident size of this process so far, loading included, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def answer(message: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(message), file=ANSWERS, flush=True)


def main() -> None:
    """Load the model, then serve orders."""
    name, _, precision = PEER.partition(":")
    try:
        run, version = PEERS[name](precision)
    except Exception as error:  # whatever a peer raises is the reason why it does not run
        answer({"error": f"{type(error).__name__}: {error}"[:300]})
        return
    answer({"ready": version})
    for line in sys.stdin:
        order = json.loads(line)
        rng = np.random.default_rng(order["seed"])
        inputs = tokens(rng, order["batch"], order["seq"], order["lengths"])
        try:
            # Threads of the contender before spin for a while after their last loop.
            time.sleep(SETTLE_SECONDS)
            output = run(inputs)  # compilation for this shape
            warm = time.perf_counter() + WARM_SECONDS
            while time.perf_counter() < warm:
                output = run(inputs)
            seconds = []
            for _ in range(order["runs"]):
                begin = time.perf_counter()
                output = run(inputs)
                seconds.append(time.perf_counter() - begin)
            if order["save"]:
                np.save(order["save"], np.asarray(output, dtype=np.float32))
            answer({"seconds": seconds, "peak_mb": peak_mb()})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
