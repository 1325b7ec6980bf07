"""What the wgmma kernels ask of TMA and of a launch, checked on the host (cutlass_descriptors.cu):
a driver's rules, where each element is found, and that nothing beyond the operands is read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import product

import pytest
import torch

from sparse_runtime.kernels.cuda_interface import SrLinear
from sparse_runtime.kernels.linear.hopper_packing import pack_hopper

TYPES = {torch.int8: 0, torch.float16: 2}
# Tokens, outputs, inputs, splits: those of tests/gpu/test_library_linear_on_cuda.py whose paths
# differ: one of each; off every tile, inputs that end within 16 bytes; whole tiles; many; splits.
SHAPES = [(1, 1, 1, 1), (9, 70, 65, 1), (33, 40, 200, 1), (128, 128, 64, 1), (130, 257, 1024, 4)]
SHAPES += [(300, 385, 256, 2), (33, 70, 256, 2), (19, 130, 64, 1)]


@pytest.fixture(scope="module")
def checker(compile_cutlass: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    # The driver's function is called by its name, which the source defines.
    return compile_cutlass("cutlass_descriptors", "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL")


def faults(
    checker: ctypes.CDLL,
    tile: int,
    dtype: torch.dtype,
    sparse: bool,
    shape: tuple[int, int, int, int],
    shift: int = 0,
    row: int = 16,
) -> str:
    """What is wrong with a layer whose rows of x are multiples of so many bytes."""
    tokens, outputs, inputs, splits = shape
    size = dtype.itemsize
    weight = pack_hopper(torch.zeros(outputs, inputs, dtype=dtype), "2:4" if sparse else "dense")
    # Nothing is read: only where it would be. Addresses of GPUs begin at multiples of 256.
    stride = -(-inputs * size // row) * row // size
    x = (1 << 40) + shift
    layer = SrLinear(
        x=x,
        x_stride=stride,
        weight=1 << 41,
        tokens=tokens,
        out_features=outputs,
        in_features=inputs,
        split_k=splits,
    )
    text = ctypes.create_string_buffer(2000)
    checker.check_descriptors(
        tile,
        TYPES[dtype],
        int(sparse),
        ctypes.byref(layer),
        ctypes.c_longlong(tokens * stride * size),
        ctypes.c_longlong(weight.nbytes),
        text,
        len(text),
    )
    return text.value.decode()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_element_is_where_the_copy_engine_looks(checker, dtype, sparse: bool) -> None:
    for tile, shape in product(range(4), SHAPES):
        if shape[3] > 1 and shape[2] % (128 // dtype.itemsize * shape[3]):
            continue
        assert not faults(checker, tile, dtype, sparse, shape), (tile, shape)


def test_operands_that_table_cc_refuses_break_the_drivers_rules(checker) -> None:
    assert "address" in faults(checker, 3, torch.int8, False, (9, 70, 65, 1), shift=8)
    assert "stride" in faults(checker, 3, torch.int8, False, (9, 70, 65, 1), row=8)
    # A split that ends within a tile of inputs: its last box would bring the next one's.
    assert "values" in faults(checker, 3, torch.int8, True, (9, 70, 192, 2))
