"""The CUDA library (csrc/cuda/api/sparse_runtime_cuda.h) through ctypes.

It is free of torch and Python, so one build serves every version of either.
"""

from __future__ import annotations

import ctypes
import hashlib
from ctypes import byref, c_char_p, c_int64, c_void_p
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cuda_interface import (
    ABI_VERSION,
    ORDERS,
    STRUCTURES,
    TYPES,
    Kernel,
    Needs,
    SrKernel,
    SrLinear,
    SrNeeds,
    WorkspaceNeeds,
    address,
)
from .linear.hopper_packing import pack_hopper
from .nm.exact_split import split
from .nm.exact_weight import ExactWeight, place_slabs

CUDA_ERROR = 3


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
    def identity(self) -> str:
        """Another one where other kernels run."""
        return hashlib.sha256(Path(self.source).read_bytes()).hexdigest()[:16]

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
        needs = (c_int64(), c_int64())
        self.handle.sr_workspace(
            kernel.number, tokens, out_features, split_k, *(byref(need) for need in needs)
        )
        return WorkspaceNeeds(*(need.value for need in needs))

    def pack(self, matrix: Tensor, structure: str) -> Tensor:
        """Bring a weight into the order of the mma kernels (csrc/cuda/mma_linear/weights.h).

        Args:
            matrix: int8, bf16 or fp16 [out, in].
            structure: "dense" or "2:4".

        Returns:
            uint8, on the device of ``matrix``, where it is packed too.

        Raises:
            ValueError: more than two of four inputs are nonzero.
        """
        return self._pack("mma", matrix.contiguous(), structure)

    def pack_hopper(self, matrix: Tensor, structure: str) -> Tensor:
        """:meth:`pack` for the wgmma kernels (csrc/cuda/hopper_linear/layout.h)."""
        if matrix.device.type != "cpu":
            return pack_hopper(matrix, structure)
        return self._pack("hopper", matrix.contiguous(), structure)

    def _pack(self, order: str, matrix: Tensor, structure: str) -> Tensor:
        place, kinds = ORDERS.index(order), (TYPES[matrix.dtype], STRUCTURES.index(structure))
        size = self.handle.sr_packed_bytes_in(place, *kinds, *matrix.shape)
        packed = torch.empty(size, dtype=torch.uint8, device=matrix.device)
        arguments = (*kinds, c_void_p(address(matrix)), *matrix.shape, c_void_p(address(packed)))
        if matrix.is_cuda:
            fits = self._pack_on_gpu(arguments, matrix.device)
        else:
            fits = self.handle.sr_pack_weight_in(place, *arguments) == 0
        if not fits:
            raise ValueError("weight: expected at most two nonzero values in every four inputs")
        return packed

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
            matrix: int8, bf16 or fp16 [out, in].
        """
        two_of_four, remainder = split(matrix)
        rest = remainder.matrix(matrix.shape[1])
        rest_places = place_slabs(rest)
        filled = rest_places.flatten() != 0
        slabs = self.pack(rest, "2:4").view(len(filled), -1)[filled]
        return ExactWeight(self.pack(two_of_four, "2:4"), slabs, rest_places)

    def unpack(
        self, packed: Tensor, structure: str, dtype: torch.dtype, shape: tuple[int, int]
    ) -> Tensor:
        """What :meth:`pack` was given."""
        return self._unpack("mma", packed, structure, dtype, shape)

    def unpack_hopper(
        self, packed: Tensor, structure: str, dtype: torch.dtype, shape: tuple[int, int]
    ) -> Tensor:
        """What :meth:`pack_hopper` was given."""
        return self._unpack("hopper", packed, structure, dtype, shape)

    def _unpack(
        self,
        order: str,
        packed: Tensor,
        structure: str,
        dtype: torch.dtype,
        shape: tuple[int, int],
    ) -> Tensor:
        matrix = torch.empty(shape, dtype=dtype)
        kinds = (ORDERS.index(order), TYPES[dtype], STRUCTURES.index(structure))
        places = (c_void_p(address(packed)), *shape, c_void_p(address(matrix)))
        self.handle.sr_unpack_weight_in(*kinds, *places)
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
