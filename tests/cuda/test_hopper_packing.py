"""Weights in the order of the wgmma kernels (csrc/cuda/hopper_linear/layout.h): there and back, and
against the layouts that CUTLASS computes, where its headers are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_void_p

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.linear.hopper_packing import pack_hopper

HOPPER = 1  # SR_ORDER_HOPPER
TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2}
# One atom; several atoms both ways; inputs and outputs that need padding; less than one group.
SHAPES = [(64, 128), (192, 384), (70, 200), (1, 3)]


def make_weight(dtype: torch.dtype, outputs: int, inputs: int, structure: int) -> Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator).to(dtype)
    if structure == 0:
        return weight
    padded = -(-inputs // 4) * 4
    order = torch.rand(outputs, padded // 4, 4, generator=generator).argsort(-1)
    keep = (order < 2).view(outputs, padded)[:, :inputs]
    weight = torch.where(keep, weight, 0)
    weight[:, 8:12] = 0  # groups without values
    return weight


def pack(emulator, weight: Tensor, structure: int) -> Tensor:
    """Bytes in the kernels' order; ValueError where they do not fit."""
    kinds = (HOPPER, TYPES[weight.dtype], structure)
    emulator.handle.sr_packed_bytes_in.restype = ctypes.c_int64
    packed = torch.full(
        (emulator.handle.sr_packed_bytes_in(*kinds, *weight.shape),), 77, dtype=torch.uint8
    )
    if emulator.handle.sr_pack_weight_in(
        *kinds, c_void_p(weight.data_ptr()), *weight.shape, c_void_p(packed.data_ptr())
    ):
        raise ValueError("weight")
    return packed


def unpack(emulator, packed: Tensor, like: Tensor, structure: int) -> Tensor:
    weight = torch.empty_like(like)
    emulator.handle.sr_unpack_weight_in(
        HOPPER,
        TYPES[like.dtype],
        structure,
        c_void_p(packed.data_ptr()),
        *like.shape,
        c_void_p(weight.data_ptr()),
    )
    return weight


def bits(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.int8 else weight.view(torch.int16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", [0, 1])
@pytest.mark.parametrize("dtype", TYPES)
def test_unpack_returns_what_was_packed(emulator, dtype, structure, shape):
    weight = make_weight(dtype, *shape, structure)
    if dtype != torch.int8:
        weight[0, 0] = -0.0
        weight[0, 1:4] = 0
    restored = unpack(emulator, pack(emulator, weight, structure), weight, structure)
    assert torch.equal(bits(restored), bits(weight))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", [0, 1])
@pytest.mark.parametrize("dtype", TYPES)
def test_any_device_packs_the_same_bytes(emulator, dtype, structure, shape):
    weight = make_weight(dtype, *shape, structure)
    if dtype != torch.int8:
        weight[-1, : min(4, shape[1])] = torch.tensor([0.0, -0.0, 0.0, -0.0])[: min(4, shape[1])]
    name = ("dense", "2:4")[structure]
    assert torch.equal(pack_hopper(weight, name), pack(emulator, weight, structure))
    strided = torch.stack([weight, weight], -1)[..., 0]  # every second value of the memory
    assert torch.equal(pack_hopper(strided, name), pack(emulator, weight, structure))


@pytest.mark.parametrize("dtype", TYPES)
def test_dense_rows_are_whole_tiles(emulator, dtype):
    weight = make_weight(dtype, 3, 200, 0)
    rows = pack(emulator, weight, 0).view(dtype).view(3, 256)
    assert torch.equal(rows[:, :200], weight)
    assert not rows[:, 200:].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_three_of_four_are_refused(emulator, dtype):
    weight = make_weight(dtype, 65, 128, 1)
    weight[64, 124:] = torch.tensor([1, 2, 3, 0]).to(dtype)  # the last group of the second atom
    with pytest.raises(ValueError, match="weight"):
        pack(emulator, weight, 1)
    with pytest.raises(ValueError, match="two nonzero"):
        pack_hopper(weight, "2:4")


@pytest.fixture(scope="module")
def cutlass(compile_cutlass: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    """cutlass_layouts.cu, compiled for the host."""
    return compile_cutlass("cutlass_layouts")


@pytest.mark.parametrize("shape", [(64, 128), (192, 384), (128, 1024)])
@pytest.mark.parametrize("dtype", TYPES)
def test_two_of_four_lie_where_cutlass_says(emulator, cutlass, dtype, shape):
    weight = make_weight(dtype, *shape, 1)
    packed = pack(emulator, weight, 1)
    outputs, inputs = shape
    value_places = torch.empty(outputs, inputs // 4, dtype=torch.int64)
    nibble_places = torch.empty_like(value_places)
    cutlass.cutlass_places(
        weight.element_size(),
        outputs,
        inputs,
        c_void_p(value_places.data_ptr()),
        c_void_p(nibble_places.data_ptr()),
    )
    values = packed[: weight.nbytes // 2].view(dtype)
    metadata = packed[weight.nbytes // 2 :].long()
    nibbles = metadata[nibble_places // 2] >> (nibble_places % 2 * 4) & 15
    # Every four bits are some group's, and put back by them the values give the weight.
    assert nibble_places.unique().numel() == 2 * len(metadata)
    restored = torch.zeros(outputs, inputs // 4, 4, dtype=dtype)
    first, second = nibbles & 3, nibbles >> 2
    assert (first < second).all()
    restored.scatter_(-1, first[..., None], values[value_places][..., None])
    restored.scatter_(-1, second[..., None], values[value_places + 1][..., None])
    assert torch.equal(restored.view(outputs, inputs), weight)


def test_epilogue_finds_every_sum_in_the_block_that_it_stages(cutlass):
    assert cutlass.cutlass_misplaced_sums() == 0


def test_splits_find_the_values_that_lie_in_one_piece(cutlass):
    assert cutlass.cutlass_lost_in_splits() == 0
