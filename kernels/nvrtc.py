"""NVRTC, the compiler that CUDA builds of PyTorch bring along, on the sources of csrc/cuda.

What it makes for a GPU is kept in the user's cache, under a hash of everything that it depends on.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_void_p
from functools import cache, cached_property
from pathlib import Path

import torch

SOURCES = Path(__file__).parents[1] / "csrc"
LEAST_VERSION = (12, 5)
"""The first NVRTC with mma.sp::ordered_metadata."""

OPTIONS = ("-std=c++17", "--fmad=false", "--device-as-default-execution-space")
PROGRAM = """
#include "cuda/mma_linear/kernels.h"
#include "cuda/mma_linear/pack_kernel.h"
#include "cuda/mma_linear/quantize_rows.h"
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

Compiled = tuple[bytes, dict[str, str]]
"""Machine code, and each kernel's name in it by name expression."""


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

    @cached_property
    def identity(self) -> str:
        """Another one for other sources, options or another compiler."""
        described = [self.version, OPTIONS, PROGRAM, HEADERS]
        return hashlib.sha256(json.dumps(described).encode() + _sources()).hexdigest()

    def compiled(self, expressions: tuple[str, ...], device: int) -> Compiled:
        """Kernels for a GPU: from the cache, or compiled now and kept there.

        Args:
            expressions: the kernels' names with their template arguments.
            device: number of the GPU.

        Raises:
            RuntimeError: the sources do not compile.
        """
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        described = [self.identity, architecture, expressions]
        key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        path = _cache_folder() / f"nvrtc_{key[:32]}"
        found = _read_cached(path)
        if found is None:
            found = self.compile(expressions, architecture)
            _keep(path, found)
        return found

    def compile(self, expressions: tuple[str, ...], architecture: str) -> Compiled:
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
    folders = [folder for entry in sys.path for folder in Path(entry, "nvidia").glob("*/lib")]
    for folder in folders:
        try:
            # NVRTC opens its built-ins by their bare name, which is known once they are loaded.
            for part in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(part))
            return ctypes.CDLL(str(folder / name))
        except OSError:
            continue
    with suppress(OSError):
        return ctypes.CDLL(name)
    raise OSError(f"{name} was not found; pip install nvidia-cuda-nvrtc")


@cache
def _sources() -> bytes:
    """Every header, with its place: a file that moves is another source."""
    headers = sorted(path for room in ("core", "cuda") for path in (SOURCES / room).rglob("*.h"))
    parts = ((str(path.relative_to(SOURCES)).encode(), path.read_bytes()) for path in headers)
    return b"\0".join(part for pair in parts for part in pair)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sparse_runtime"


def _read_cached(path: Path) -> Compiled | None:
    """What :func:`_keep` wrote; None where it is not there, or not whole any more."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(content).hexdigest():
        return None
    names, _, binary = content.partition(b"\n")
    return binary, json.loads(names)


def _keep(path: Path, compiled: Compiled) -> None:
    """Write a file, whole or not at all; where nothing can be written, nothing is kept."""
    binary, names = compiled
    content = json.dumps(names).encode() + b"\n" + binary
    digest = hashlib.sha256(content).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            Path(folder, path.name).write_bytes(digest + b"\n" + content)
            os.replace(Path(folder, path.name), path)
    except OSError:
        return
