"""The CUDA backend's linears on a GPU: where they run, and under what. Run by gpu_check.sh.

tests/ops/test_cuda_linear.py compares them with the reference, on the same GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparse_runtime as sr
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, REGIMES, Choice, Estimate, Regime, why_not
from sparse_runtime.ops.cuda.families import DENSE_FAMILIES, FAMILIES
from sparse_runtime.ops.cuda.layer_choice import choices_of
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.machine import machine_of
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.timer import graph_microseconds
from sparse_runtime.ops.cuda.timings import forget
from sparse_runtime.ops.cuda.trial import Trial
from sparse_runtime.ops.reference import ReferenceLinear
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_in_order,
    make_activations,
    make_packed,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, or a torch built without CUDA"
)

# BERT base: (structure, sparsity) of a layer of 768 outputs.
STRUCTURES = {
    "dense": None,
    "unstructured": 0.9,
    "2:4": None,
    "block:32x32": 0.9,
    "block:64x64": 0.9,
}
SHAPE = (768, 768)
SPLIT = (256, 3072)  # few outputs of many inputs: programs share a tile's inputs
TOKENS = (1, 16, 17, 129, 1000)


def layer_of(
    structure: str,
    values: str = "int8",
    shape: tuple[int, int] = SHAPE,
    dtype: torch.dtype | None = None,
) -> sr.Linear:
    packed = make_packed(shape, structure, STRUCTURES[structure], values=values).to("cuda")
    bias = make_activations(1, shape[0], seed=1)[0]
    return sr.Linear(packed, bias, backend="cuda", dtype=dtype)


def inputs(tokens: int, features: int = SHAPE[1], dtype: torch.dtype = torch.float32) -> Tensor:
    return make_activations(tokens, features, dtype=dtype).cuda()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", [SHAPE, SPLIT])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_family_gives_the_reference_at_real_sizes(
    structure: str, shape: tuple[int, int], tokens: int
) -> None:
    packed = make_packed(shape, structure, STRUCTURES[structure], values="int8").to("cuda")
    request = LinearRequest(
        (LinearWeight("layer", packed),), torch.device("cuda", 0), torch.float32
    )
    problem = stack_layers(request).problem
    x = inputs(tokens, shape[1])
    expected = ReferenceLinear(request)(x)
    for family in FAMILIES:
        refused = why_not(family, problem, None, machine_of(request.device))
        if refused or tokens < family.least_tokens(problem):
            continue
        if family.name == "cusparselt" and not torch.backends.cusparselt.is_available():
            continue
        estimate = Estimate(family, None, 1.0)
        regime = next(t for t in REGIMES if t >= tokens)
        choice = Choice(ANY_TOKENS, estimate, Regime(1, regime, {family.name: estimate}, None))
        assert torch.equal(CudaLinear(request, (choice,))(x), expected), family.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_floats_are_as_close_to_float64_as_pytorch(structure: str, dtype: torch.dtype) -> None:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    layer = layer_of(structure, name, dtype=dtype)
    x = inputs(200, dtype=dtype)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    dense = linear_in_order(x, layer.weight, layer.bias)
    assert_close_to_oracle(layer(x), exact, dense)


@pytest.mark.parametrize("values", ["int8", "bf16"])
def test_a_whole_graph_of_dynamic_shapes(values: str) -> None:
    dtype = torch.bfloat16 if values == "bf16" else torch.float32
    model = nn.Sequential(layer_of("2:4", values, dtype=dtype), nn.GELU()).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in TOKENS:
            x = inputs(tokens, dtype=dtype)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shape", [SHAPE, SPLIT])
def test_a_graph_of_the_user_replays_on_any_stream(structure: str, shape: tuple[int, int]) -> None:
    layer = layer_of(structure, shape=shape)
    x = inputs(33, shape[1])
    with torch.inference_mode():
        expected = layer(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for stream in (torch.cuda.current_stream(), side):
            y.zero_()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(y, expected)
        x.copy_(inputs(33, shape[1]).flip(0))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, layer(x))


def test_streams_and_threads_do_not_share_their_counters() -> None:
    # Few tokens of many inputs: programs count themselves in.
    layer = layer_of("dense", shape=SPLIT)
    xs = [inputs(16, SPLIT[1]) + i for i in range(4)]
    with torch.inference_mode():
        expected = [layer(x) for x in xs]
    torch.cuda.synchronize()

    def work(i: int) -> bool:
        stream = torch.cuda.Stream()
        with torch.inference_mode(), torch.cuda.stream(stream):
            same = [layer(xs[i]) for _ in range(50)]
            stream.synchronize()
            return all(torch.equal(y, expected[i]) for y in same)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_autocast_gives_its_own_type() -> None:
    layer, x = layer_of("2:4"), inputs(20)
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        assert layer(x).dtype == torch.float16


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_layer_runs_on_the_gpu_it_was_moved_to() -> None:
    layer, x = layer_of("2:4", shape=SPLIT), inputs(20, SPLIT[1])
    expected = layer(x)
    moved = layer.to("cuda:1")
    assert torch.equal(moved(x.to("cuda:1")).cpu(), expected.cpu())  # the current device is 0
    with pytest.raises(RuntimeError, match="expected input on cuda:1"):
        moved(x)


def test_explain_says_what_runs() -> None:
    text = layer_of("2:4").explain()
    assert "-> cuda: " in text and "cpu.panels: runs on cpu, the layer is on cuda" in text


@pytest.mark.alone
def test_tuning_measures_and_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    layer = layer_of("2:4")
    report = sr.tune(layer, tokens=[16, 64], seconds=60)
    families = {(timing.tokens, timing.family) for timing in report.found.timings}
    assert {(16, "triton.dense"), (64, "triton.dense"), (64, "cublas")} <= families
    wrong = [f for f in report.found.failures if "not PyTorch's" in f.reason]
    assert not wrong
    problem = report.found.timings[0].problem
    choices = choices_of(problem, torch.device("cuda", 0))
    by_tokens = {choice.regime.tokens: choice for choice in choices}
    for tokens in (16, 64):
        assert by_tokens[tokens].regime.source is not None
        timings = [t for t in report.found.timings if t.tokens == tokens]
        dense = min(t.cold for t in timings if t.family in DENSE_FAMILIES)
        assert by_tokens[tokens].estimate.microseconds <= dense
    layer.prepare()
    assert "measured" in layer.explain()
    forget()


@pytest.mark.alone
def test_a_weight_in_memory_takes_longer_than_one_in_l2() -> None:
    packed = make_packed((4096, 1024), values="bf16").to("cuda")
    device = torch.device("cuda", 0)
    request = LinearRequest((LinearWeight("layer", packed),), device, torch.bfloat16)
    layers = stack_layers(request)
    family = FAMILIES[0]
    own = family.pack(layers)
    config = family.configs(own, layers.problem, 16, machine_of(device))[0]
    cold, warm = graph_microseconds(Trial(family, config, layers, own, 16))
    assert 0 < warm < cold < 1000
