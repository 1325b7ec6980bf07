"""What crosses the border to the CUDA library (csrc/cuda/api/sparse_runtime_cuda.h): its structs,
and what they say in Python."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear.operands import SCHEMES, Epilogue, Quantized, Target
from .nm.exact_weight import ExactWeight

ABI_VERSION = 4
TYPES: dict[torch.dtype, int] = {
    torch.int8: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float32: 3,
}
STRUCTURES = ("dense", "2:4", "exact")
ORDERS = ("mma", "hopper")
"""Of packed weights: csrc/cuda/mma_linear/weights.h, csrc/cuda/hopper_linear/layout.h."""

ACTIVATIONS = ("none", "gelu", "gelu_new", "relu", "silu", "tanh")


class SrLinear(ctypes.Structure):
    """``SrLinear`` of the header, field by field."""

    _fields_ = (
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("x_scale", c_void_p),
        ("x_zero", c_void_p),
        ("x_scale_stride", c_int32),
        ("weight", c_void_p),
        ("weight_scale", c_void_p),
        ("weight_sum", c_void_p),
        ("bias", c_void_p),
        ("out_scale", c_void_p),
        ("out_zero", c_void_p),
        ("out_low", c_void_p),
        ("out_high", c_void_p),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("activation", c_int32),
        ("scheme", c_int32),
        ("floats", c_void_p),
        ("floats_stride", c_int64),
        ("floats_type", c_int32),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("low", c_int32),
        ("high", c_int32),
        ("ranges", c_void_p),
        ("tokens", c_int32),
        ("out_features", c_int32),
        ("in_features", c_int32),
        ("split_k", c_int32),
        ("partials", c_void_p),
        ("tile_counters", c_void_p),
        ("rest", c_void_p),
        ("rest_places", c_void_p),
    )


class SrKernel(ctypes.Structure):
    """``SrKernel`` of the header."""

    _fields_ = (
        ("name", c_char_p),
        ("type", c_int32),
        ("structure", c_int32),
        ("tile_out", c_int32),
        ("tile_tok", c_int32),
    )


class SrNeeds(ctypes.Structure):
    """``SrNeeds`` of the header."""

    _fields_ = (
        ("order", c_int32),
        ("capability", c_int32),
        ("split_multiple", c_int32),
        ("weight_alignment", c_int32),
        ("threads", c_int32),
        ("shared_bytes", c_int32),
    )


@dataclass(frozen=True)
class Kernel:
    """One kernel of a library.

    Attributes:
        number: what the library calls it by.
        name: for people: family, type, structure, tile.
        dtype: of weights and inputs.
        structure: "dense", "2:4" or "exact" (any matrix, ``nm/exact_weight.py``).
        tile_out: outputs of a tile.
        tile_tok: tokens of a tile.
        order: of its weights, one of ``ORDERS``.
    """

    number: int
    name: str
    dtype: torch.dtype
    structure: str
    tile_out: int
    tile_tok: int
    order: str = "mma"


@dataclass(frozen=True)
class Needs:
    """What a kernel asks beyond its type, structure and tile.

    Attributes:
        capability: 80: 8.0 and later; 90: 9.0 alone (sm_90a).
        split_multiple: several splits share inputs that are a multiple of their number times this.
        weight_alignment: bytes.
        threads: of a block.
        shared_bytes: of a block, asked for at launch.
    """

    capability: int
    split_multiple: int
    weight_alignment: int
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class WorkspaceNeeds:
    """What one layer needs beside its operands.

    Attributes:
        partial_bytes: for the sums of several splits.
        tile_counters: int32, zeros before and after.
    """

    partial_bytes: int
    tile_counters: int


def describe_layer(
    x: Quantized | Tensor,
    weight: Tensor | ExactWeight,
    out_features: int,
    epilogue: Epilogue,
    activation: str | None,
    target: Target,
    scheme: str,
) -> SrLinear:
    """The operands of a layer as the library takes them; ``kernels/linear/operands.py`` says what
    each is. ``split_k`` is 1."""
    rows = x.q if isinstance(x, Quantized) else x
    floats = target.floats if epilogue.residual is None else epilogue.residual
    if floats is not None and target.floats is not None and floats.dtype != target.floats.dtype:
        raise ValueError(f"residual: expected {target.floats.dtype}, got {floats.dtype}")
    layer = SrLinear(
        x=address(rows),
        x_stride=rows.stride(0),
        weight=address(weight.two_of_four if isinstance(weight, ExactWeight) else weight),
        weight_scale=address(epilogue.weight_scale),
        weight_sum=address(epilogue.weight_sum),
        bias=address(epilogue.bias),
        out_scale=address(epilogue.out_scale),
        out_zero=address(epilogue.out_zero),
        out_low=address(epilogue.out_low),
        out_high=address(epilogue.out_high),
        residual=address(epilogue.residual),
        residual_stride=epilogue.residual_stride,
        activation=ACTIVATIONS.index(activation or "none"),
        scheme=SCHEMES.index(scheme),
        floats=address(target.floats),
        floats_stride=target.floats_stride,
        floats_type=TYPES[torch.float32 if floats is None else floats.dtype],
        q=address(target.q),
        q_stride=target.q_stride,
        scale=address(target.scale),
        zero=address(target.zero),
        low=target.low,
        high=target.high,
        ranges=address(target.ranges),
        tokens=len(rows),
        out_features=out_features,
        in_features=rows.shape[1],
        split_k=1,
    )
    if isinstance(x, Quantized):
        layer.x_scale, layer.x_zero = address(x.scale), address(x.zero)
        layer.x_scale_stride = x.stride
    if isinstance(weight, ExactWeight):
        layer.rest, layer.rest_places = address(weight.rest), address(weight.rest_places)
    return layer


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's data begin, as ctypes takes it."""
    return None if tensor is None else tensor.data_ptr()
