"""The hand-written CUDA kernels where the library was not built: NVRTC compiles their sources.

CUDA builds of PyTorch bring NVRTC along. What it makes for a GPU is kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_void_p
from functools import cache, cached_property
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cuda_compiled import Tile, tile_of
from .cuda_interface import STRUCTURES, Kernel, SrLinear, WorkspaceNeeds
from .cuda_library import Library

SOURCES = Path(__file__).parents[1] / "csrc"
LEAST_VERSION = (12, 5)
"""The first NVRTC with mma.sp::ordered_metadata."""

OPTIONS = ("-std=c++17", "--fmad=false", "--device-as-default-execution-space")
PROGRAM = """
#include "cuda/mma_linear/kernels.h"
#include "cuda/mma_linear/pack_kernel.h"
"""
# NVRTC has no standard library. These are the parts of it that the sources use.
_INTEGERS = "".join(
    f"using {sign}int{bits}_t = {'unsigned' if sign else 'signed'} {kind};\n"
    for bits, kind in ((8, "char"), (16, "short"), (32, "int"), (64, "long long"))
    for sign in ("", "u")
)
_NAMES = "".join(f"using ::{sign}int{bits}_t;" for bits in (8, 16, 32, 64) for sign in ("", "u"))
HEADERS = {
    "stdint.h": f"#pragma once\n{_INTEGERS}",
    "cstdint": f"#pragma once\n#include <stdint.h>\nnamespace std {{ {_NAMES} }}\n",
    "cstring": "#pragma once\n",
    "type_traits": (
        "#pragma once\nnamespace std {\n"
        "template <bool, typename A, typename> struct conditional { using type = A; };\n"
        "template <typename A, typename B> struct conditional<false, A, B> { using type = B; };\n"
        "template <bool C, typename A, typename B>\n"
        "using conditional_t = typename conditional<C, A, B>::type;\n}\n"
    ),
}
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
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Matrix(ctypes.Structure):
    """``Matrix`` of csrc/cuda/mma_linear/weights.h."""

    _fields_ = (("values", c_void_p), ("outputs", c_int), ("inputs", c_int))


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

    def workspace_needs(
        self, kernel: Kernel, tokens: int, out_features: int, split_k: int
    ) -> WorkspaceNeeds:
        rows = ceil(tokens / kernel.tile_tok)
        if split_k == 1:
            return WorkspaceNeeds(0, 0, rows)
        tiles = rows * ceil(out_features / kernel.tile_out)
        sums = 4 * kernel.tile_out * kernel.tile_tok
        return WorkspaceNeeds(tiles * split_k * sums, tiles, rows)

    def pack(self, matrix: Tensor, structure: str) -> Tensor:
        """:meth:`Library.pack`, on the GPU whatever the device of ``matrix``."""
        device = matrix.device if matrix.is_cuda else torch.device("cuda")
        values = matrix.to(device).contiguous()
        outputs, inputs = values.shape
        size = values.element_size()
        grid = (ceil(inputs / 64), ceil(outputs / 16))
        slab = 512 * size + 128 if structure == "2:4" else 1024 * size
        packed = torch.empty(grid[0] * grid[1] * slab, dtype=torch.uint8, device=device)
        misfits = torch.zeros(1, dtype=torch.int32, device=device)
        arguments = (
            Matrix(values.data_ptr(), outputs, inputs),
            ctypes.c_bool(structure == "2:4"),
            c_void_p(packed.data_ptr()),
            c_void_p(misfits.data_ptr()),
        )
        with torch.cuda.device(device):
            # Now, for while a graph is captured nothing can be loaded.
            self._functions(_group(values.dtype, structure), packed.get_device())
            function = self._functions("pack", packed.get_device())[_packer(size)]
            self._launch(function.handle, grid, 32, 0, device, *arguments)
        if int(misfits):
            raise ValueError("weight: expected at most two nonzero values in every four inputs")
        return packed.to(matrix.device)

    def unpack(
        self, packed: Tensor, structure: str, dtype: torch.dtype, shape: tuple[int, int]
    ) -> Tensor:
        raise NotImplementedError("weights are unpacked by the built library alone")

    def launch(self, kernel: Kernel, layer: SrLinear, device: torch.device) -> None:
        group = self._functions(_group(kernel.dtype, kernel.structure), _number(device))
        handle, tile = group[_expression(kernel)]
        assert tile is not None  # a linear kernel
        tiles = ceil(layer.tokens / tile.tokens) * ceil(layer.out_features / tile.outputs)
        grid = (tiles, layer.split_k)
        self._launch(handle, grid, tile.threads, tile.shared, device, layer)

    def _launch(
        self,
        handle: c_void_p,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        device: torch.device,
        *arguments: Any,
    ) -> None:
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = c_void_p(torch.cuda.current_stream(device).cuda_stream)
        sizes = (*grid, 1, threads, 1, 1, shared)
        self._check(self.driver.cuLaunchKernel(handle, *sizes, stream, pointers, None))

    def _functions(self, group: str, device: int) -> dict[str, Function]:
        """The kernels of a group on a device, by name expression."""
        found = self._loaded.get((device, group))
        if found is not None:
            return found
        binary, names = self.nvrtc.compiled(_expressions(group), device)
        module = c_void_p()
        self._check(self.driver.cuModuleLoadData(byref(module), binary))
        found = {}
        for expression, name in names.items():
            handle, tile = c_void_p(), tile_of(name)
            self._check(self.driver.cuModuleGetFunction(byref(handle), module, name.encode()))
            if tile is not None:
                size = (_MOST_SHARED_BYTES, tile.shared)
                self._check(self.driver.cuFuncSetAttribute(handle, *size))
            found[expression] = Function(handle, tile)
        self._loaded[device, group] = found
        return found

    def _check(self, status: int) -> None:
        if status:
            text = c_char_p()
            self.driver.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"CUDA driver: {(text.value or b'unknown').decode()} ({status})")


class Nvrtc:
    """NVRTC through ctypes.

    Attributes:
        version: major and minor.
    """

    def __init__(self) -> None:
        """Load it.

        Raises:
            OSError: it is not there.
            RuntimeError: it is too old.
        """
        self.handle = _load_nvrtc()
        major, minor = c_int(), c_int()
        self._check(self.handle.nvrtcVersion(byref(major), byref(minor)))
        self.version = (major.value, minor.value)
        if self.version < LEAST_VERSION:
            raise RuntimeError(f"NVRTC {major.value}.{minor.value}: 12.5 or later is needed")

    def compiled(self, expressions: tuple[str, ...], device: int) -> tuple[bytes, dict[str, str]]:
        """Machine code for a GPU, and each kernel's name in it."""
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        described = [self.version, architecture, OPTIONS, expressions, PROGRAM, HEADERS]
        key = hashlib.sha256(json.dumps(described).encode() + _sources()).hexdigest()
        path = _cache_folder() / f"nvrtc_{key[:32]}"
        if path.exists():
            names, _, binary = path.read_bytes().partition(b"\n")
            return binary, json.loads(names)
        binary, found = self.compile(expressions, architecture)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            Path(folder, path.name).write_bytes(json.dumps(found).encode() + b"\n" + binary)
            os.replace(Path(folder, path.name), path)
        return binary, found

    def compile(
        self, expressions: tuple[str, ...], architecture: str
    ) -> tuple[bytes, dict[str, str]]:
        """:meth:`compiled` for "sm_90" and the like, anew; needs no GPU.

        Raises:
            RuntimeError: the sources do not compile; with NVRTC's words.
        """
        program = c_void_p()
        texts = (c_char_p * len(HEADERS))(*(text.encode() for text in HEADERS.values()))
        names = (c_char_p * len(HEADERS))(*(name.encode() for name in HEADERS))
        create = (PROGRAM.encode(), b"sparse_runtime.cu", len(HEADERS), texts, names)
        self._check(self.handle.nvrtcCreateProgram(byref(program), *create))
        try:
            for expression in expressions:
                self._check(self.handle.nvrtcAddNameExpression(program, expression.encode()))
            options = (*OPTIONS, f"--gpu-architecture={architecture}", f"-I{SOURCES}")
            given = (c_char_p * len(options))(*(option.encode() for option in options))
            if self.handle.nvrtcCompileProgram(program, len(options), given):
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode()
                raise RuntimeError(f"NVRTC does not compile {SOURCES}: {log[:2000]}")
            lowered = {}
            for expression in expressions:
                name = c_char_p()
                get = self.handle.nvrtcGetLoweredName
                self._check(get(program, expression.encode(), byref(name)))
                lowered[expression] = (name.value or b"").decode()
            return self._read(program, "CUBIN"), lowered
        finally:
            self.handle.nvrtcDestroyProgram(byref(program))

    def _read(self, program: c_void_p, what: str) -> bytes:
        size = c_size_t()
        self._check(getattr(self.handle, f"nvrtcGet{what}Size")(program, byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.handle, f"nvrtcGet{what}")(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            describe = self.handle.nvrtcGetErrorString
            describe.restype = c_char_p
            raise RuntimeError(f"NVRTC: {describe(c_int32(status)).decode()}")


def _load_nvrtc() -> ctypes.CDLL:
    """The one of PyTorch's own CUDA version, or whatever the system has."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvrtc.so.{major}"
    places = [Path(entry, "nvidia") for entry in sys.path]
    found = [str(path) for place in places for path in place.glob(f"*/lib/{name}")]
    for candidate in (*found, name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise OSError(f"{name} was not found; pip install nvidia-cuda-nvrtc")


@cache
def _sources() -> bytes:
    headers = sorted(path for room in ("core", "cuda") for path in (SOURCES / room).rglob("*.h"))
    return b"".join(path.read_bytes() for path in headers)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sparse_runtime"


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


def _packer(size: int) -> str:
    return f"{_SPACE}::pack_kernel<unsigned {'char' if size == 1 else 'short'}>"


def _expressions(group: str) -> tuple[str, ...]:
    """The kernels that are compiled together: of one type and structure, or for packing."""
    if group == "pack":
        return _packer(1), _packer(2)
    return tuple(_linear(tile, group) for tile in _TILES)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
