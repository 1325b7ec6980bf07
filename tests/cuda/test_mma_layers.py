"""Layers of the CUDA backend on the hand-written kernels, which the emulator runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.linear import linear_cuda
from sparse_runtime.kernels.linear.linear_cuda import MmaConfig
from sparse_runtime.kernels.linear.operands import Epilogue, Target
from sparse_runtime.kernels.linear.tiles import Workspace
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda.candidate import CudaCandidate
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, REGIMES, Choice, Estimate, Regime
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.machine import H100
from sparse_runtime.ops.cuda.mma_families import MmaDense, MmaTwoOfFour
from sparse_runtime.ops.cuda.problem import Problem
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.trial import Trial
from sparse_runtime.ops.reference import ReferenceLinear
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    make_packed,
)

CPU = torch.device("cpu")
# 70 outputs and 132 inputs divide no tile of 64 and no slab; 19 tokens are more than one of 16.
SHAPE, TOKENS = (70, 132), 19


def request_of(structure: str, values: str, **how) -> LinearRequest:
    packed = make_packed(SHAPE, structure, None, values=values, seed=2, **how)
    bias = make_activations(1, SHAPE[0], seed=1)[0]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(values, torch.float32)
    return LinearRequest((LinearWeight("layer", packed, bias),), CPU, dtype)


def forced(request: LinearRequest, family: MmaDense, config: MmaConfig) -> CudaLinear:
    estimate = Estimate(family, config, 1.0)
    regime = Regime(1, 16, {family.name: estimate}, None)
    return CudaLinear(request, (Choice(ANY_TOKENS, estimate, regime),))


@pytest.mark.parametrize("scheme", ["dynamic", "symmetric"])  # with and without zero points
@pytest.mark.parametrize(
    ("family", "structure"),
    [
        (MmaDense(), "dense"),
        (MmaDense(), "unstructured"),
        (MmaTwoOfFour(), "2:4"),
        (MmaTwoOfFour(), "1:4"),
        (MmaTwoOfFour(), "1:2"),
        (MmaTwoOfFour(), "2:8"),
    ],
)
def test_quantized_layers_equal_the_reference(emulated, family, structure: str, scheme: str):
    if structure == "2:8":
        packed = make_packed((70, 136), structure, None, values="int8", activations=scheme)
        request = LinearRequest((LinearWeight("layer", packed, None),), CPU, torch.float32)
    else:
        request = request_of(structure, "int8", activations=scheme)
    layers = stack_layers(request)
    assert family.rejects(layers.problem) is None
    x = make_activations(TOKENS, request.in_features)
    residual = make_activations(TOKENS, SHAPE[0], seed=3)
    expected = ReferenceLinear(request)(x, "relu", residual)
    for config in (MmaConfig(16, 64, 1), MmaConfig(64, 64, 2)):
        assert torch.equal(forced(request, family, config)(x, "relu", residual), expected)


@pytest.mark.parametrize("values", ["bf16", "fp16"])
@pytest.mark.parametrize("family", [MmaDense(), MmaTwoOfFour()], ids=lambda f: f.name)
def test_float_layers_are_as_near_as_their_type(emulated, family, values: str) -> None:
    request = request_of(family.structure, values)
    layer = forced(request, family, MmaConfig(16, 64, 2))
    x = make_activations(TOKENS, SHAPE[1]).to(request.dtype)  # rows of 264 bytes: copied
    weight = request.weights[0]
    oracle, dense = linear_oracle(x, weight.packed, weight.bias.to(request.dtype))
    assert_close_to_oracle(layer(x), oracle, dense)


@pytest.mark.parametrize("family", [MmaDense(), MmaTwoOfFour()], ids=lambda f: f.name)
def test_a_trial_has_the_launch_that_quantizes_rows(emulated, family) -> None:
    request = request_of(family.structure, "int8", activations="dynamic")
    layers = stack_layers(replace(request, results=ActivationSpec("dynamic", "uint8")))
    for config in (MmaConfig(16, 64, 1), MmaConfig(64, 64, 2)):
        trial = Trial(family, config, layers, family.pack(layers), TOKENS)
        assert trial.wrong() is None
        assert trial.wrong() is None  # from what the first launch left
    variant = family.variant(family.pack(layers), config, layers)
    assert variant.launches(TOKENS, "asymmetric") == family.launches(layers.problem) == 2
    plain = layers.problem._replace(dynamic=False)
    for scheme in ("none", "static"):
        assert variant.launches(TOKENS, scheme) == family.launches(plain) == 1


def test_choosing_considers_them_and_says_so(emulated) -> None:
    text = CudaCandidate().note(request_of("2:4", "int8", activations="dynamic"))
    assert "mma.2:4" in text and "mma.dense" in text


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        *((structure, True) for structure in ("2:4", "1:2", "1:4", "2:8", "1:8")),
        *((structure, False) for structure in ("4:8", "3:4", "unstructured", "dense")),
    ],
)
def test_two_of_four_takes_what_is_two_of_four(emulated, structure: str, fits: bool) -> None:
    problem = Problem("int8", 768, 768, structure, 0.5)
    assert (MmaTwoOfFour().rejects(problem) is None) == fits


def test_zero_points_of_weights_and_float32_are_refused(emulated) -> None:
    zeros = Epilogue(weight_zero=torch.ones(4, dtype=torch.int32))
    assert "zero points" in str(MmaDense().refuses(zeros))
    assert MmaDense().refuses(Epilogue()) is None
    assert MmaDense().rejects(Problem("fp32", 768, 768, "dense", 1.0)) is not None
    weight = linear_cuda.pack(torch.ones(4, 64, dtype=torch.bfloat16), "dense")
    target = Target(torch.empty(1, 4), 4)
    with pytest.raises(ValueError, match="weight_zero"):
        linear_cuda.linear(
            torch.ones(1, 64, dtype=torch.bfloat16), weight, zeros, None, target, "none",
            MmaConfig(16, 64), Workspace(None, torch.zeros(1)),
        )  # fmt: skip


def test_without_the_library_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = cuda_loading.Loaded(None, "was not built")
    monkeypatch.setattr(cuda_loading, "load", lambda: missing)
    for family in (MmaDense(), MmaTwoOfFour()):
        assert family.rejects(Problem("int8", 768, 768, "2:4", 0.5)) == "was not built"
    with pytest.raises(RuntimeError, match="was not built"):
        linear_cuda.pack(torch.ones(4, 64, dtype=torch.bfloat16), "dense")


@pytest.mark.parametrize("tokens", REGIMES)
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_configurations_have_kernels_and_survive_a_table(emulated, dtype: str, tokens: int) -> None:
    family = MmaTwoOfFour()
    problem = Problem(dtype, 768, 3072, "2:4", 0.5)
    weight = linear_cuda.pack(torch.zeros(4, 64, dtype=torch.int8), "2:4")
    configs = family.configs(weight, problem, tokens, H100)
    assert len(set(configs)) == len(configs) == 12
    for config in configs:
        assert linear_cuda.kernel_of(weight, config).name.startswith("mma.int8.2to4")
        assert family.decode(tuple(config)) == config
    assert family.work(problem, tokens, H100).weight_bytes < 0.7 * problem.weights * (
        problem.itemsize
    )
