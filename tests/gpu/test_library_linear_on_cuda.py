"""The linear kernels of the CUDA library on a GPU, by family: "mma", which tests/cuda runs in the
emulator, and "hopper", of which the host can run the packing and the epilogue alone."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.linear import linear_cuda, linear_hopper
from sparse_runtime.kernels.linear.linear_cuda import SPLITS, MmaConfig, MmaWeight
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    float_linear,
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.kernels.linear.tiles import Workspace

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda_loading.not_launched() is not None,
    reason=f"hand-written kernels: {cuda_loading.not_launched() or 'no GPU'}",
)

hopper = pytest.param(
    "hopper",
    marks=pytest.mark.skipif(
        not torch.cuda.is_available()
        or torch.cuda.get_device_capability() != (9, 0)
        or linear_hopper.missing() is not None,
        reason="needs compute capability 9.0, and a library that was built with CUTLASS's headers",
    ),
)
FAMILIES = ("mma", hopper)
PACK = {"mma": linear_cuda.pack, "hopper": linear_hopper.pack}
TILES = {"mma": linear_cuda.TILES, "hopper": [tile[:2] for tile in linear_hopper.TILES]}
SMALL = {"mma": (16, 64), "hopper": (32, 64)}
STRUCTURES = ("dense", "2:4")
DTYPES = (torch.int8, torch.bfloat16, torch.float16)
# Tokens, outputs, inputs: one of each; off every tile; inputs that end within a slab and within 16
# bytes; whole tiles; many tiles either way, clusters that reach beyond the last one among them.
SHAPES = [(1, 1, 1), (9, 70, 65), (33, 40, 200), (128, 128, 64), (130, 257, 1024), (1000, 768, 768)]
SHAPES += [(300, 385, 2048)]


def make_weight(dtype: torch.dtype, structure: str, outputs: int, inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    if dtype == torch.int8:
        weight = torch.randint(-128, 128, weight.shape, generator=generator).float()
    if structure == "2:4":
        order = torch.rand(outputs, -(-inputs // 4), 4, generator=generator).argsort(-1)
        weight = weight * (order < 2).flatten(1)[:, :inputs]
    return weight.to(dtype).cuda()


class Layer:
    """A weight, an input, and what a launch needs beside them."""

    def __init__(
        self,
        family: str,
        dtype: torch.dtype,
        structure: str,
        shape: tuple[int, int, int],
        config: MmaConfig,
    ) -> None:
        tokens, outputs, inputs = shape
        self.config = config
        self.matrix = make_weight(dtype, structure, outputs, inputs)
        self.weight: MmaWeight = PACK[family](self.matrix, structure)
        rows = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens)).cuda()
        self.epilogue = Epilogue(bias=torch.randn(outputs, device="cuda"))
        self.x: Quantized | Tensor = rows.to(dtype)
        if dtype == torch.int8:
            q, scale, zero = quantize_rows_asymmetric(rows)
            stored = torch.full((tokens, -(-inputs // 16) * 16), 99, device="cuda").to(torch.int8)
            stored[:, :inputs] = q - 128
            zero = (zero - 128).int()
            self.x = Quantized(stored[:, :inputs], stored.stride(0), scale, zero, 1)
            self.epilogue = self.epilogue._replace(
                weight_scale=torch.rand(outputs, device="cuda") * 0.01,
                weight_sum=self.matrix.sum(1, dtype=torch.int32),
            )
        partials, counters = linear_cuda.workspace_needs(tokens, self.weight, config)
        self.workspace = Workspace(
            torch.empty(partials, device="cuda"),
            torch.zeros(counters, dtype=torch.int32, device="cuda"),
        )

    def launch(self, target: Target, scheme: str = "none") -> None:
        operands = (self.x, self.weight, self.epilogue, None, target, scheme)
        linear_cuda.linear(*operands, self.config, self.workspace)

    def run(self) -> Tensor:
        y = torch.full(self.shape, torch.nan, device="cuda")
        self.launch(Target(y, y.shape[1]))
        assert not self.workspace.counters.any()
        return y

    @property
    def shape(self) -> tuple[int, int]:
        tokens = len(self.x.q if isinstance(self.x, Quantized) else self.x)
        return tokens, len(self.matrix)

    def expected(self) -> Tensor:
        x, e = self.x, self.epilogue
        if isinstance(x, Quantized):
            return integer_linear(x.q, x.zero, x.scale, self.matrix, e.weight_scale, e.bias)
        return float_linear(x.double(), self.matrix.double(), e.bias.double())

    def check(self, y: Tensor) -> None:
        expected = self.expected()
        if isinstance(self.x, Quantized):
            assert torch.equal(y, expected)
        else:
            bound = 3e-6 * self.matrix.shape[1] ** 0.5 * max(1.0, float(expected.abs().max()))
            assert float((y - expected).abs().max()) <= bound


def takes(family: str, dtype: torch.dtype, config: MmaConfig, inputs: int) -> bool:
    """Whether these inputs can be split so; mma leaves splits without work, where they are few."""
    steps = 128 // dtype.itemsize * config.split_k
    return family == "mma" or config.split_k == 1 or inputs % steps == 0


@pytest.mark.parametrize("split_k", SPLITS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_products_equal_the_reference(family, dtype, structure: str, split_k: int) -> None:
    for tile, shape in product(TILES[family], SHAPES):
        config = MmaConfig(*tile, split_k)
        if not takes(family, dtype, config, shape[2]):
            continue
        layer = Layer(family, dtype, structure, shape, config)
        layer.check(layer.run())
        layer.check(layer.run())  # the workspace is as it was


@pytest.mark.sanitize
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_small_products_in_splits(family: str, dtype, structure: str) -> None:
    layer = Layer(family, dtype, structure, (33, 70, 256), MmaConfig(*SMALL[family], 2))
    layer.check(layer.run())


@pytest.mark.sanitize
@pytest.mark.parametrize("floats", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scheme", ["static", "symmetric", "full_range", "asymmetric"])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_quantized_for_the_next_layer(
    family: str, scheme: str, floats: torch.dtype
) -> None:
    # Three tiles a row, the last one not whole, and rows that do not begin at multiples of four.
    config = MmaConfig(*SMALL[family])
    layer = Layer(family, torch.int8, "2:4", (19, 130, 64), config)
    tokens, outputs = layer.shape
    dynamic = scheme != "static"
    target = Target(
        floats=torch.empty(tokens, outputs, dtype=floats, device="cuda"),
        floats_stride=outputs,
        q=torch.zeros(tokens, outputs, dtype=torch.int8, device="cuda"),
        q_stride=outputs,
        scale=torch.full((tokens,), 0.05, device="cuda"),
        zero=torch.full((tokens,), 3, dtype=torch.int32, device="cuda"),
        ranges=torch.zeros(2, tokens, dtype=torch.int32, device="cuda") if dynamic else None,
        counters=torch.zeros(2, dtype=torch.int32, device="cuda") if dynamic else None,
    )
    layer.launch(target, scheme)
    assert torch.equal(target.floats, layer.expected().to(floats))
    y = target.floats.float()
    if not dynamic:
        assert torch.equal(target.q.int(), quantize_static(y, 0.05, 3, -128, 127).int())
        return
    assert not target.ranges.any() and not target.counters.any()
    if scheme == "asymmetric":
        q, scale, zero = quantize_rows_asymmetric(y)
        q, zero = q - 128, zero - 128
        assert torch.equal(target.zero, zero)
    else:
        q, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(y)
    assert torch.equal(target.q.int(), q.int()) and torch.equal(target.scale, scale)


@pytest.mark.sanitize
@pytest.mark.parametrize("shape", [(1, 1), (17, 66), (70, 132), (768, 3072)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_on_the_gpu_equals_packing_on_the_host(
    family: str, dtype, structure: str, shape
) -> None:
    matrix = make_weight(dtype, structure, *shape)
    packed = PACK[family](matrix, structure).packed
    assert packed.is_cuda
    assert torch.equal(packed.cpu(), PACK[family](matrix.cpu(), structure).packed)


def test_three_of_four_are_refused_on_the_gpu() -> None:
    matrix = torch.zeros(16, 64, dtype=torch.int8, device="cuda")
    matrix[3, 8:11] = 1
    with pytest.raises(ValueError, match="two nonzero"):
        linear_cuda.pack(matrix, "2:4")


@pytest.mark.parametrize("family", FAMILIES)
def test_launches_follow_their_stream(family: str) -> None:
    layer = Layer(family, torch.int8, "2:4", (64, 128, 4096), MmaConfig(*SMALL[family], 4))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would not wait for the copy
        layer.x.q.copy_(layer.x.q.flip(0))
        y = layer.run()
    stream.synchronize()
    layer.check(y)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_holds_launches(family: str, dtype: torch.dtype) -> None:
    layer = Layer(family, dtype, "2:4", (33, 130, 1024), MmaConfig(*SMALL[family], 4))
    y = torch.empty(layer.shape, device="cuda")
    target = Target(y, y.shape[1])
    layer.launch(target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer.launch(target)
    for _ in range(3):
        y.fill_(torch.nan)
        graph.replay()
        layer.check(y)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_not_aligned_are_copied(family: str) -> None:
    layer = Layer(family, torch.bfloat16, "dense", (9, 70, 64), MmaConfig(*SMALL[family]))
    shifted = torch.empty(9 * 64 + 1, dtype=torch.bfloat16, device="cuda")[1:].view(9, 64)
    layer.x = shifted.copy_(layer.x)
    layer.check(layer.run())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_and_residuals(family: str, activation: str) -> None:
    layer = Layer(family, torch.int8, "dense", (70, 132, 128), MmaConfig(*SMALL[family]))
    residual = torch.randn(layer.shape, device="cuda")
    epilogue = layer.epilogue._replace(residual=residual, residual_stride=layer.shape[1])
    y = torch.empty(layer.shape, device="cuda")
    operands = (layer.x, layer.weight, epilogue, activation, Target(y, y.shape[1]), "none")
    linear_cuda.linear(*operands, layer.config, layer.workspace)
    x, e = layer.x, epilogue
    given = (x.q, x.zero, x.scale, layer.matrix, e.weight_scale, e.bias, activation, residual)
    torch.testing.assert_close(y, integer_linear(*given), rtol=2e-6, atol=2e-6)


def test_hopper_refuses_splits_within_a_stage() -> None:
    if linear_hopper.missing() is not None or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no kernels for this GPU")
    layer = Layer("hopper", torch.int8, "2:4", (9, 70, 192), MmaConfig(32, 64, 2))
    with pytest.raises(RuntimeError, match="refuses the call"):
        layer.run()
