"""The "exact" kernels, thread by thread on the host: any matrix on sparse tensor cores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.cuda_interface import describe_layer
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import integer_linear, quantize_rows_asymmetric
from sparse_runtime.kernels.nm.exact_split import split
from sparse_runtime.kernels.nm.exact_weight import ExactWeight
from sparse_runtime.kernels.nm.input_order import find_input_order

TILES = ("128x128", "64x64", "64x16")


def sparse_matrix(shape: tuple[int, int], density: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    matrix = torch.randn(shape, generator=generator)
    if dtype == torch.int8:
        matrix = torch.randint(-128, 128, shape, generator=generator).float()
    return (matrix * (torch.rand(shape, generator=generator) < density)).to(dtype)


def run(emulator, name: str, rows: Tensor, weight: Tensor, split_k: int = 1, seed: int = 1):
    """-> (what the kernel gives, what the reference gives), both float32 [tokens, out]."""
    kernel = next(kernel for kernel in emulator.kernels if kernel.name == f"mma.{name}")
    packed = emulator.pack_exact(weight)
    (outputs, inputs), tokens = weight.shape, len(rows)
    stored = torch.full((tokens, -(-inputs // 16) * 16), 99).to(weight.dtype)
    floats = torch.full((tokens, outputs), 7.0)
    epilogue = Epilogue(bias=torch.linspace(-1, 1, outputs))
    if weight.dtype == torch.int8:
        q, scale, zero = quantize_rows_asymmetric(rows)
        q, zero = (q - 128).to(torch.int8), zero - 128
        stored[:, :inputs] = q
        x: Quantized | Tensor = Quantized(stored[:, :inputs], stored.stride(0), scale, zero, 1)
        epilogue = epilogue._replace(
            weight_scale=torch.linspace(0.01, 0.02, outputs), weight_sum=weight.int().sum(1).int()
        )
        expected = integer_linear(q, zero, scale, weight, epilogue.weight_scale, epilogue.bias)
    else:
        stored[:, :inputs] = rows.to(weight.dtype)
        x = stored[:, :inputs]
        expected = x.double() @ weight.double().T + epilogue.bias
    target = Target(floats=floats, floats_stride=outputs)
    needs = emulator.workspace_needs(kernel, tokens, outputs, split_k)
    scratch = [
        torch.empty(needs.partial_bytes, dtype=torch.uint8),
        torch.zeros(needs.tile_counters, dtype=torch.int32),
    ]
    layer = describe_layer(x, packed, outputs, epilogue, None, target, "none")
    layer.split_k = split_k
    layer.partials, layer.tile_counters = (t.data_ptr() for t in scratch)
    given = x if isinstance(x, Quantized) else (x,)
    reads = [t for t in (*given, *epilogue, *packed) if isinstance(t, Tensor)]
    emulator.run(kernel, layer, reads, [floats, *scratch], seed)
    assert not scratch[1].any()
    return floats, expected


def activations(tokens: int, inputs: int) -> Tensor:
    return torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens))


# One value; off every tile; tiles of outputs and tokens filled; several slabs, the last a part.
SHAPES = [(1, 1, 3), (9, 70, 65), (130, 130, 64), (33, 40, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", TILES)
def test_integers_equal_the_reference(emulator, tile: str, shape: tuple[int, int, int]) -> None:
    for density in (0.15, 1.0):  # some slabs have a rest; all do
        weight = sparse_matrix(shape[1:], density, torch.int8)
        given, expected = run(
            emulator, f"int8.exact.{tile}", activations(shape[0], shape[2]), weight
        )
        assert torch.equal(given, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_floats_are_as_near_as_their_type(emulator, name: str, tile: str, shape) -> None:
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    weight = sparse_matrix(shape[1:], 0.3, dtype)
    given, expected = run(emulator, f"{name}.exact.{tile}", activations(shape[0], shape[2]), weight)
    bound = 3e-6 * shape[2] ** 0.5 * max(1.0, float(expected.abs().max()))
    assert float((given - expected).abs().max()) <= bound


@pytest.mark.parametrize("split_k", [2, 3])  # 4 slabs: even shares; the last split has fewer
def test_splits_add_up_whatever_the_order(emulator, split_k: int) -> None:
    weight = sparse_matrix((70, 200), 0.2, torch.int8)
    for seed in (0, 5):
        given = run(emulator, "int8.exact.64x16", activations(20, 200), weight, split_k, seed)
        assert torch.equal(*given)


def special(kind: str) -> Tensor:
    weight = sparse_matrix((70, 260), 0.1, torch.int8)
    if kind == "no rest":
        return split(weight)[0]
    if kind == "one row":
        weight = split(weight)[0]
        weight[69] = 1
    if kind == "last slab":  # of which 4 inputs exist
        weight = split(weight)[0]
        weight[:, 256:] = -128
    if kind == "zeros":
        weight[:] = 0
    return weight


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("kind", ["no rest", "one row", "last slab", "zeros"])
def test_rests_in_odd_places(emulator, kind: str, tile: str) -> None:
    weight = special(kind)
    packed = emulator.pack_exact(weight)
    slabs = {"no rest": 0, "one row": 5, "last slab": 5, "zeros": 0}
    assert len(packed.rest) == slabs[kind]  # of 5 tiles of outputs x 5 slabs
    assert torch.equal(*run(emulator, f"int8.exact.{tile}", activations(9, 260), weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_halves_with_a_rest_are_multiplied(emulator, dtype: torch.dtype) -> None:
    weight = torch.zeros(32, 128, dtype=dtype)
    weight[0, 32:36] = 1  # tile 0, slab 0, second half
    weight[20, 64:67] = 1  # tile 1, slab 1, first half
    packed = emulator.pack_exact(weight)
    assert packed.rest_places.tolist() == [[0 * 4 + 2, 0], [0, 1 * 4 + 1]]
    name = "bf16" if dtype == torch.bfloat16 else "f16"
    given, expected = run(emulator, f"{name}.exact.64x16", torch.ones(3, 128), weight)
    assert torch.equal(given, expected.float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
def test_a_packed_matrix_comes_back_bit_for_bit(emulator, dtype: torch.dtype) -> None:
    weight = sparse_matrix((70, 131), 0.3, dtype)
    weight[weight == 0] = 0  # no -0.0
    weight[-1] = 0
    weight[-1, -1] = -0.0  # its place is free
    back = emulator.unpack_exact(emulator.pack_exact(weight), dtype, (70, 131))
    kind = torch.int8 if dtype == torch.int8 else torch.int16
    assert torch.equal(back.view(kind), weight.view(kind))


def test_permuted_inputs_give_the_same_integers(emulator) -> None:
    weight, rows = sparse_matrix((70, 256), 0.1, torch.int8), activations(9, 256)
    order = find_input_order(weight)
    plain, _ = run(emulator, "int8.exact.64x16", rows, weight)
    permuted, _ = run(emulator, "int8.exact.64x16", rows[:, order], weight[:, order])
    assert torch.equal(plain, permuted)
    packed = [emulator.pack_exact(matrix) for matrix in (weight, weight[:, order])]
    assert packed[1].extra < packed[0].extra


def test_a_place_beyond_the_rest_is_caught(emulator) -> None:
    weight = sparse_matrix((16, 64), 1.0, torch.int8)
    pack = emulator.pack_exact

    def misplaced(matrix: Tensor) -> ExactWeight:
        packed = pack(matrix)
        return packed._replace(rest_places=packed.rest_places + 4)

    emulator.pack_exact = misplaced
    try:
        with pytest.raises(RuntimeError, match="global read out of bounds"):
            run(emulator, "int8.exact.64x16", activations(1, 64), weight)
    finally:
        del emulator.pack_exact
