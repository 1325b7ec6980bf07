"""The CUDA library (csrc/cuda/api/sparse_runtime_cuda.h) through ctypes: its structs and functions.

It is free of torch and Python, so one build serves every version of either.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .linear.operands import SCHEMES, Epilogue, Quantized, Target
from .nm.exact_split import split
from .nm.exact_weight import ExactWeight, place_slabs

ABI_VERSION = 3
TYPES: dict[torch.dtype, int] = {
    torch.int8: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float32: 3,
}
CUDA_ERROR = 3
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
        ("counters", c_void_p),
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
    """What one launch needs beside its operands.

    Attributes:
        partial_bytes: for the sums of several splits.
        tile_counters: int32, zeros before and after.
        row_counters: elements of ``Target.counters`` where rows are quantized dynamically.
    """

    partial_bytes: int
    tile_counters: int
    row_counters: int


class Library:
    """A loaded library.

    Attributes:
        source: where it comes from, for people.
        kernels: what it holds.
        launches_on_cpu: whether launches take tensors in main memory, as the emulator's do.
    """

    launches_on_cpu = False

    def __init__(self, path: Path) -> None:
        """Load a library.

        Raises:
            OSError: it does not load, or has another interface than this package.
        """
        self.source = str(path)
        self.handle = ctypes.CDLL(str(path))
        self.handle.sr_packed_bytes_in.restype = c_int64
        version = self.handle.sr_abi_version()
        if version != ABI_VERSION:
            raise OSError(
                f"{path}: interface version {version}, this package needs {ABI_VERSION}; build the "
                "library again"
            )
        self.kernels = tuple(map(self._kernel, range(self.handle.sr_kernel_count())))

    def _kernel(self, number: int) -> Kernel:
        found = SrKernel()
        self.handle.sr_kernel(number, byref(found))
        dtype = next(dtype for dtype, code in TYPES.items() if code == found.type)
        structure = STRUCTURES[found.structure]
        name = found.name.decode()
        order = ORDERS[self._needs(number).order]
        return Kernel(number, name, dtype, structure, found.tile_out, found.tile_tok, order)

    def _needs(self, number: int) -> SrNeeds:
        found = SrNeeds()
        self.handle.sr_kernel_needs(number, byref(found))
        return found

    @cached_property
    def by_tile(self) -> dict[tuple[str, torch.dtype, str, int, int], Kernel]:
        """The kernels by order, type, structure, and tokens and outputs of a tile."""
        return {(k.order, k.dtype, k.structure, k.tile_tok, k.tile_out): k for k in self.kernels}

    def needs(self, kernel: Kernel) -> Needs:
        """What a kernel asks of its operands and of the GPU."""
        found = self._needs(kernel.number)
        return Needs(
            found.capability,
            found.split_multiple,
            found.weight_alignment,
            found.threads,
            found.shared_bytes,
        )

    def workspace_needs(
        self, kernel: Kernel, tokens: int, out_features: int, split_k: int
    ) -> WorkspaceNeeds:
        """What a launch needs."""
        needs = (c_int64(), c_int64(), c_int64())
        self.handle.sr_workspace(
            kernel.number, tokens, out_features, split_k, *(byref(need) for need in needs)
        )
        return WorkspaceNeeds(*(need.value for need in needs))

    def pack(self, matrix: Tensor, structure: str, order: str = "mma") -> Tensor:
        """Bring a weight into the order of some kernels.

        Args:
            matrix: int8, bf16 or fp16 [out, in].
            structure: "dense" or "2:4".
            order: one of ``ORDERS``; "hopper" is packed in main memory, "mma" where the weight is.

        Returns:
            uint8, on the device of ``matrix``.

        Raises:
            ValueError: more than two of four inputs are nonzero.
        """
        own = matrix.contiguous()
        if order != "mma":
            own = own.cpu()
        number, kinds = ORDERS.index(order), (TYPES[own.dtype], STRUCTURES.index(structure))
        size = self.handle.sr_packed_bytes_in(number, *kinds, *own.shape)
        packed = torch.empty(size, dtype=torch.uint8, device=own.device)
        arguments = (*kinds, c_void_p(_address(own)), *own.shape, c_void_p(_address(packed)))
        if own.is_cuda:
            fits = self._pack_on_gpu(arguments, own.device)
        else:
            fits = self.handle.sr_pack_weight_in(number, *arguments) == 0
        if not fits:
            raise ValueError("weight: expected at most two nonzero values in every four inputs")
        return packed.to(matrix.device)

    def _pack_on_gpu(self, arguments: tuple[Any, ...], device: torch.device) -> bool:
        misfits = torch.zeros(1, dtype=torch.int32, device=device)
        with torch.cuda.device(device):
            stream = c_void_p(torch.cuda.current_stream(device).cuda_stream)
            place = c_void_p(misfits.data_ptr())
            self._check(self.handle.sr_pack_weight_device(*arguments, place, stream))
        return int(misfits) == 0

    def launch(self, kernel: Kernel, layer: SrLinear, device: torch.device) -> None:
        """Enqueue a layer on the current stream of ``device``, which must be the current one.

        Raises:
            RuntimeError: CUDA refuses the launch.
        """
        stream = c_void_p(torch.cuda.current_stream(device).cuda_stream)
        self._check(self.handle.sr_linear(kernel.number, byref(layer), stream))

    def _check(self, status: int) -> None:
        if status == CUDA_ERROR:
            last_error = self.handle.sr_last_error
            last_error.restype = c_char_p
            raise RuntimeError(f"the CUDA library: {last_error().decode()}")
        if status:
            raise RuntimeError(f"the CUDA library refuses the call: status {status}")

    def pack_exact(self, matrix: Tensor) -> ExactWeight:
        """Bring any weight into the order of the "exact" kernels, without loss.

        Permute its inputs by ``kernels/nm/input_order.find_input_order`` before: the fewer tiles
        have a rest, the faster.

        Args:
            matrix: int8, bf16 or fp16 [out, in], in main memory.
        """
        two_of_four, remainder = split(matrix)
        rest = remainder.matrix(matrix.shape[1])
        rest_places = place_slabs(rest)
        filled = rest_places.flatten() != 0
        slabs = self.pack(rest, "2:4").view(len(filled), -1)[filled]
        return ExactWeight(self.pack(two_of_four, "2:4"), slabs, rest_places)

    def unpack(
        self,
        packed: Tensor,
        structure: str,
        dtype: torch.dtype,
        shape: tuple[int, int],
        order: str = "mma",
    ) -> Tensor:
        """What :meth:`pack` was given; ``packed`` in main memory."""
        matrix = torch.empty(shape, dtype=dtype)
        kinds = (ORDERS.index(order), TYPES[dtype], STRUCTURES.index(structure))
        self.handle.sr_unpack_weight_in(
            *kinds, c_void_p(_address(packed)), *shape, c_void_p(_address(matrix))
        )
        return matrix

    def unpack_exact(
        self, weight: ExactWeight, dtype: torch.dtype, shape: tuple[int, int]
    ) -> Tensor:
        """What :meth:`pack_exact` was given."""
        places = weight.rest_places.flatten()
        slab_bytes = weight.two_of_four.numel() // len(places)
        rest = torch.zeros(len(places), slab_bytes, dtype=torch.uint8)
        filled = places != 0
        rest[filled] = weight.rest[(places[filled] // 4).long()]
        two_of_four = self.unpack(weight.two_of_four, "2:4", dtype, shape)
        remainder = self.unpack(rest.flatten(), "2:4", dtype, shape)
        return torch.where(remainder != 0, remainder, two_of_four)


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
        x=_address(rows),
        x_stride=rows.stride(0),
        weight=_address(weight.two_of_four if isinstance(weight, ExactWeight) else weight),
        weight_scale=_address(epilogue.weight_scale),
        weight_sum=_address(epilogue.weight_sum),
        bias=_address(epilogue.bias),
        out_scale=_address(epilogue.out_scale),
        out_zero=_address(epilogue.out_zero),
        out_low=_address(epilogue.out_low),
        out_high=_address(epilogue.out_high),
        residual=_address(epilogue.residual),
        residual_stride=epilogue.residual_stride,
        activation=ACTIVATIONS.index(activation or "none"),
        scheme=SCHEMES.index(scheme),
        floats=_address(target.floats),
        floats_stride=target.floats_stride,
        floats_type=TYPES[torch.float32 if floats is None else floats.dtype],
        q=_address(target.q),
        q_stride=target.q_stride,
        scale=_address(target.scale),
        zero=_address(target.zero),
        low=target.low,
        high=target.high,
        ranges=_address(target.ranges),
        counters=_address(target.counters),
        tokens=len(rows),
        out_features=out_features,
        in_features=rows.shape[1],
        split_k=1,
    )
    if isinstance(x, Quantized):
        layer.x_scale, layer.x_zero = _address(x.scale), _address(x.zero)
        layer.x_scale_stride = x.stride
    if isinstance(weight, ExactWeight):
        layer.rest, layer.rest_places = _address(weight.rest), _address(weight.rest_places)
    return layer


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
