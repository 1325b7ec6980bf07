"""The hand-written CUDA kernels where the library was not built: NVRTC compiles their sources."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_void_p
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cuda_compiled import Tile, tile_of
from .cuda_interface import STRUCTURES, Kernel, SrLinear, WorkspaceNeeds
from .cuda_library import Library
from .linear.operands import SCHEMES
from .nm.exact_weight import ExactWeight
from .nvrtc import Nvrtc

_SPACE = "sparse_runtime::mma"
_CPP = {
    torch.int8: "signed char",
    torch.bfloat16: "sparse_runtime::ptx::BF16",
    torch.float16: "sparse_runtime::ptx::F16",
}
_CPP_STRUCTURES = {"dense": "kDense", "2:4": "kTwoOfFour", "exact": "kExact"}
_TILES = ("Large", "Middle", "Small")
_SHAPES = {"Large": (128, 128), "Middle": (64, 64), "Small": (64, 16)}
_TYPES = {torch.int8: "int8", torch.bfloat16: "bf16", torch.float16: "f16"}
_QUANTIZE = f"{_SPACE}::quantize_kernel"
_QUANTIZE_THREADS = 128
_FIRST_DYNAMIC = SCHEMES.index("symmetric")
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Matrix(ctypes.Structure):
    """``Matrix`` of csrc/cuda/mma_linear/weights.h."""

    _fields_ = (("values", c_void_p), ("outputs", c_int), ("inputs", c_int))


class _Layout(NamedTuple):
    """A packed weight, as csrc/cuda/mma_linear/weights.h has it."""

    dtype: torch.dtype
    structure: str
    out_features: int
    in_features: int

    @property
    def grid(self) -> tuple[int, int]:
        """Slabs of inputs, tiles of outputs."""
        return ceil(self.in_features / 64), ceil(self.out_features / 16)

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs."""
        size = self.dtype.itemsize
        slab = 512 * size + 128 if self.structure == "2:4" else 1024 * size
        return self.grid[0] * self.grid[1] * slab


class Function(NamedTuple):
    """A loaded kernel.

    Attributes:
        handle: ``CUfunction``.
        tile: of a linear kernel; None for a packing one.
    """

    handle: c_void_p
    tile: Tile | None


class RuntimeLibrary(Library):
    """The library's kernels, each type and structure compiled when it is first needed."""

    def __init__(self) -> None:
        """Find NVRTC and compile the packing kernels, which shows that it can.

        Raises:
            OSError: NVRTC or the driver is missing.
            RuntimeError: there is no GPU, or NVRTC is too old or does not compile the sources.
        """
        if not torch.cuda.is_available():
            raise RuntimeError("NVRTC compiles for a GPU, and there is none")
        self.nvrtc = Nvrtc()
        self.source = f"compiled by NVRTC {'.'.join(map(str, self.nvrtc.version))}"
        self.kernels = tuple(_kernels())
        self._loaded: dict[tuple[int, str], dict[str, Function]] = {}
        self._functions("pack", torch.cuda.current_device())

    @cached_property
    def driver(self) -> Any:
        """libcuda."""
        return ctypes.CDLL("libcuda.so.1")

    @cached_property
    def identity(self) -> str:
        return self.nvrtc.identity[:16]

    def workspace_needs(
        self, kernel: Kernel, tokens: int, out_features: int, split_k: int
    ) -> WorkspaceNeeds:
        if split_k == 1:
            return WorkspaceNeeds(0, 0)
        tiles = ceil(tokens / kernel.tile_tok) * ceil(out_features / kernel.tile_out)
        sums = 4 * kernel.tile_out * kernel.tile_tok
        return WorkspaceNeeds(tiles * split_k * sums, tiles)

    def pack(self, matrix: Tensor, structure: str) -> Tensor:
        """:meth:`Library.pack`, on the GPU whatever the device of ``matrix``."""
        values = matrix.to(_gpu_of(matrix)).contiguous()
        layout = _Layout(values.dtype, structure, *values.shape)
        packed = torch.empty(layout.nbytes, dtype=torch.uint8, device=values.device)
        misfits = torch.zeros(1, dtype=torch.int32, device=values.device)
        arguments = (
            Matrix(values.data_ptr(), *values.shape),
            ctypes.c_bool(structure == "2:4"),
            c_void_p(packed.data_ptr()),
            c_void_p(misfits.data_ptr()),
        )
        self._run("pack_kernel", layout, values, *arguments)
        if int(misfits):
            raise ValueError("weight: expected at most two nonzero values in every four inputs")
        return packed.to(matrix.device)

    def pack_exact(self, matrix: Tensor) -> ExactWeight:
        """:meth:`Library.pack_exact`."""
        packed = super().pack_exact(matrix)
        self._prepare(matrix.dtype, "exact", _gpu_of(matrix))
        return packed

    def unpack(
        self, packed: Tensor, structure: str, dtype: torch.dtype, shape: tuple[int, int]
    ) -> Tensor:
        """:meth:`Library.unpack`, on the GPU whatever the device of ``packed``."""
        given = packed.to(_gpu_of(packed)).contiguous()
        matrix = torch.zeros(shape, dtype=dtype, device=given.device)
        arguments = (
            c_void_p(given.data_ptr()),
            ctypes.c_bool(structure == "2:4"),
            Matrix(matrix.data_ptr(), *shape),
        )
        layout = _Layout(dtype, structure, *shape)
        self._run("unpack_kernel", layout, given, *arguments)
        return matrix.to(packed.device)

    def _run(self, name: str, layout: _Layout, given: Tensor, *arguments: Any) -> None:
        """Pack or unpack on the device of ``given``, a warp for each slab."""
        device = given.device
        with torch.cuda.device_of(given):
            self._prepare(layout.dtype, layout.structure, device)
            found = self._functions("pack", _number(device))
            function = found[_packer(name, layout.dtype.itemsize)]
            self._launch(function.handle, layout.grid, 32, 0, device, *arguments)

    def _prepare(self, dtype: torch.dtype, structure: str, device: torch.device) -> None:
        """Load a weight's kernels while it is packed: nothing can be while a graph is captured."""
        self._functions(_group(dtype, structure), _number(device))

    def launch(self, kernel: Kernel, layer: SrLinear, device: torch.device) -> None:
        group = self._functions(_group(kernel.dtype, kernel.structure), _number(device))
        found = group.get(_expression(kernel))
        if found is None:
            raise RuntimeError(f"{kernel.name}: a block needs more shared memory than {device} has")
        handle, tile = found
        assert tile is not None  # a linear kernel
        tiles = ceil(layer.tokens / tile.tokens) * ceil(layer.out_features / tile.outputs)
        grid = (tiles, layer.split_k)
        self._launch(handle, grid, tile.threads, tile.shared, device, layer)
        if layer.scheme >= _FIRST_DYNAMIC:
            rows = (layer.tokens, 1)
            self._launch(group[_QUANTIZE].handle, rows, _QUANTIZE_THREADS, 0, device, layer)

    def _launch(
        self,
        handle: c_void_p,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        device: torch.device,
        *arguments: Any,
    ) -> None:
        self._take_context(device)
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = c_void_p(torch.cuda.current_stream(device).cuda_stream)
        sizes = (*grid, 1, threads, 1, 1, shared)
        self._check(self.driver.cuLaunchKernel(handle, *sizes, stream, pointers, None))

    def _take_context(self, device: torch.device) -> None:
        """A thread that has called nothing of CUDA yet has no context, which the driver wants."""
        context = c_void_p()
        self._check(self.driver.cuCtxGetCurrent(byref(context)))
        if context.value is None:
            self._check(self.driver.cuDevicePrimaryCtxRetain(byref(context), _number(device)))
            self._check(self.driver.cuCtxSetCurrent(context))

    def _functions(self, group: str, device: int) -> dict[str, Function]:
        """The kernels of a group on a device, by name expression."""
        found = self._loaded.get((device, group))
        if found is not None:
            return found
        binary, names = self.nvrtc.compiled(_expressions(group), device)
        with torch.cuda.device(device):
            # A module belongs to the thread's context. PyTorch makes one when it first uses the
            # GPU, and the driver none by itself.
            torch.zeros(1, device="cuda")
            found = self._load(binary, names)
        self._loaded[device, group] = found
        return found

    def _load(self, binary: bytes, names: dict[str, str]) -> dict[str, Function]:
        """Kernels of a binary in the current context, by name expression: those that fit it."""
        module = c_void_p()
        self._check(self.driver.cuModuleLoadData(byref(module), binary))
        found = {}
        for expression, name in names.items():
            handle, tile = c_void_p(), tile_of(name)
            self._check(self.driver.cuModuleGetFunction(byref(handle), module, name.encode()))
            if tile is not None:
                size = (_MOST_SHARED_BYTES, tile.shared)
                if self.driver.cuFuncSetAttribute(handle, *size):
                    continue  # more than a block of this GPU may have
            found[expression] = Function(handle, tile)
        return found

    def _check(self, status: int) -> None:
        if status:
            text = c_char_p()
            self.driver.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"CUDA driver: {(text.value or b'unknown').decode()} ({status})")


def _kernels() -> list[Kernel]:
    """As csrc/cuda/mma_linear/table.cc lists them."""
    kernels: list[Kernel] = []
    for dtype in _CPP:
        for structure in STRUCTURES:
            for tile in _TILES:
                outputs, tokens = _SHAPES[tile]
                kind = structure.replace(":", "to")
                name = f"mma.{_TYPES[dtype]}.{kind}.{outputs}x{tokens}"
                kernels.append(Kernel(len(kernels), name, dtype, structure, outputs, tokens))
    return kernels


def _group(dtype: torch.dtype, structure: str) -> str:
    return f"{_CPP[dtype]}, {_SPACE}::Structure::{_CPP_STRUCTURES[structure]}"


def _expression(kernel: Kernel) -> str:
    group = _group(kernel.dtype, kernel.structure)
    return _linear(_TILES[kernel.number % len(_TILES)], group)


def _linear(tile: str, group: str) -> str:
    return f"{_SPACE}::linear_kernel<{_SPACE}::{tile}Tile<{group}>>"


def _packer(name: str, size: int) -> str:
    return f"{_SPACE}::{name}<unsigned {'char' if size == 1 else 'short'}>"


def _expressions(group: str) -> tuple[str, ...]:
    """The kernels that are compiled together: of one type and structure, or for packing."""
    if group == "pack":
        return tuple(
            _packer(f"{way}_kernel", size) for way in ("pack", "unpack") for size in (1, 2)
        )
    return (*(_linear(tile, group) for tile in _TILES), _QUANTIZE)


def _gpu_of(tensor: Tensor) -> torch.device:
    return tensor.device if tensor.is_cuda else torch.device("cuda")


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
