"""Declares what is compiled: the C++ extension sparse_runtime._C, and the CUDA library.

Each file csrc/cpu/<family>/<instruction set>.cc is compiled with the flags of its instruction set
and all other files with the compiler's defaults, so one library runs on every CPU of the
architecture and chooses at run time.

The CUDA library (docs/kernels/cuda_library.md) is a plain shared object, free of Python and torch.
SPARSE_RUNTIME_CUDA says whether it is built: "auto" (the default) where nvcc is on PATH, with a
warning where that fails; "1" in any case, or the installation fails; "0" never. Its kernels for
sm_90a need CUTLASS's headers, which SPARSE_RUNTIME_CUTLASS or an installed nvidia-cutlass has; they
are left out without, and a warning says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # A fused multiply-add where one instruction set has it and another has not would change bits.
    "-ffp-contract=off",
    "-pthread",
    "-Wall",
    "-Wextra",
    # gcc's own AVX-512 headers set it off (GCC bug 105593).
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
# A literal: tests/csrc reads it to compile single files the same way.
# Kernels never throw: without landing pads, no symbol is shared either.
# fmt: off
ISA_FLAGS = {
    "avx2": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c",
    ],
    "avx_vnni": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c", "-mavxvnni",
    ],
    "avx512": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
        "-mavx512vl",
    ],
    "avx512_vnni": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
        "-mavx512vl", "-mavx512vnni",
    ],
    "avx512_bf16": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
        "-mavx512vl", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi2",
    ],
    "amx": [
        "-fno-exceptions", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq",
        "-mavx512vl", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi2", "-mamx-tile",
        "-mamx-int8", "-mamx-bf16",
    ],
}
# fmt: on
# A compiler may know a flag without knowing the architecture, so the test uses an intrinsic.
ISA_TESTS = {
    "avx2": "__m256i f(__m256i a) { return _mm256_madd_epi16(a, a); }",
    "avx_vnni": "__m256i f(__m256i a) { return _mm256_dpbusd_avx_epi32(a, a, a); }",
    "avx512": "__m512i f(__m512i a) { return _mm512_madd_epi16(a, a); }",
    "avx512_vnni": "__m512i f(__m512i a) { return _mm512_dpbusd_epi32(a, a, a); }",
    "avx512_bf16": "__m512 f(__m512 a, __m512bh b) { return _mm512_dpbf16_ps(a, b, b); }",
    "amx": "void f() { _tile_dpbusd(0, 1, 2); _tile_dpbf16ps(0, 1, 2); }",
}

CUDA_MODES = ("auto", "1", "0")
CUDA_FLAGS = [
    "-std=c++17",
    "-O3",
    # A fused multiply-add would give other bits than the reference.
    "--fmad=false",
    "-Xcompiler=-fPIC",
    "-Xfatbin=-compress-all",
    "-Icsrc",
]
# By family, that which takes longest first.
CUDA_TARGETS = {
    "hopper_linear": [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-DNDEBUG",  # CUTLASS's assertions would cost registers
        "--expt-relaxed-constexpr",
    ],
    # Machine code of Ampere and Hopper, which those between run too, and PTX for later GPUs.
    "mma_linear": [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ],
}
CUTLASS_VERSION = "4.2"


def sources_and_headers() -> tuple[list[str], list[str]]:
    """Returns every C++ file of the extension, relative to this one as setuptools wants it."""
    sources = [p for room in ("core", "cpu", "bindings") for p in Path("csrc", room).rglob("*.cc")]
    headers = list(Path("csrc").rglob("*.h"))
    return sorted(p.as_posix() for p in sources), sorted(p.as_posix() for p in headers)


def find_cutlass() -> Path | None:
    """The folder of CUTLASS's headers, if they are here."""
    named = os.environ.get("SPARSE_RUNTIME_CUTLASS")
    package = importlib.util.find_spec("cutlass_library")
    if not named and (package is None or package.origin is None):
        return None
    folder = Path(named or Path(package.origin).parent / "source/include")
    version = folder / "cutlass/version.h"
    text = version.read_text() if version.is_file() else ""
    if ".".join(re.findall(r"define CUTLASS_(?:MAJOR|MINOR) (\d+)", text)) == CUTLASS_VERSION:
        return folder.resolve()
    if named:
        raise SetupError(f"SPARSE_RUNTIME_CUTLASS: {version} is not of CUTLASS {CUTLASS_VERSION}")
    return None


def included(source: Path) -> list[str]:
    """Our own headers that a file includes, directly or not."""
    found: set[str] = set()
    unread = [source]
    while unread:
        names = re.findall(r'^#include "(.+)"', unread.pop().read_text(), re.MULTILINE)
        own = {path for name in names if Path(path := f"csrc/{name}").exists()} - found
        unread += map(Path, own)
        found |= own
    return sorted(found)


class CudaLibrary(Extension):
    """The shared object sparse_runtime/libsparse_runtime_cuda.so."""

    def __init__(self, nvcc: str, cutlass: Path | None, *, optional: bool) -> None:
        """Name the compiler; where it is optional, an installation goes on without it."""
        sources = [
            path.as_posix()
            for family in CUDA_TARGETS
            if cutlass is not None or family != "hopper_linear"
            for path in sorted(Path("csrc/cuda", family).glob("*.c[cu]"))
        ]
        super().__init__("sparse_runtime.libsparse_runtime_cuda", sources, optional=optional)
        self.nvcc = nvcc
        self.cutlass = cutlass

    def build(self, to: Path) -> str:
        """Compile what has changed since the last build; returns a line that says so."""
        # Not setuptools' own folder, which `pip install -e .` deletes each time.
        folder = Path(os.environ.get("SPARSE_RUNTIME_CUDA_OBJECTS") or "build/cuda")
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        jobs = int(os.environ.get("SPARSE_RUNTIME_BUILD_JOBS", 0)) or os.cpu_count() or 1
        with ThreadPoolExecutor(jobs) as pool:
            made = list(pool.map(lambda source: self._compile(folder, Path(source)), self.sources))
        objects = [str(path) for path, _ in made]
        exports = "csrc/cuda/api/exports.map"
        flags = ["-shared", "-cudart=static", "--no-device-link"]
        # Nothing of the machine that built it but libc.
        flags += ["-Xcompiler=-static-libstdc++,-static-libgcc"]
        flags += [f"-Xlinker=--version-script={exports}"]
        library, _ = self._run(folder / "library.so", [*flags, *objects], [exports, *objects])
        shutil.copy(library, to)
        seconds, compiled = time.perf_counter() - start, sum(new for _, new in made)
        said = (
            f"CUDA library: {compiled} of {len(made)} files compiled, {seconds:.0f} s, {jobs} jobs"
        )
        if self.cutlass is None:
            said += (
                f"; no kernels for sm_90a (H100, H200): CUTLASS {CUTLASS_VERSION} was not found, "
            )
            said += "name its headers in SPARSE_RUNTIME_CUTLASS (docs/kernels/cuda_library.md)"
        return said

    def _compile(self, folder: Path, source: Path) -> tuple[Path, bool]:
        flags = [*CUDA_FLAGS, *CUDA_TARGETS[source.parent.name], "-x", "cu", "-c", str(source)]
        read = [str(source), *included(source)]
        if self.cutlass is not None:
            flags.append("-DSPARSE_RUNTIME_HOPPER")
            if source.parent.name == "hopper_linear":
                flags += ["-isystem", str(self.cutlass)]
                read.append(str(self.cutlass / "cutlass" / "version.h"))
        name = f"{source.parent.name}.{source.stem}.o"
        return self._run(folder / name, flags, read)

    def _run(self, output: Path, flags: list[str], read: list[str]) -> tuple[Path, bool]:
        """Run nvcc, unless `output` comes of the same command and files; whether it ran."""
        command = [self.nvcc, *flags, "-o", str(output)]
        version = subprocess.run([self.nvcc, "--version"], capture_output=True, check=True).stdout
        parts = [repr(command).encode(), version, *(Path(path).read_bytes() for path in read)]
        key = hashlib.sha256(b"".join(parts)).hexdigest()
        stamp = output.with_suffix(".key")
        if output.exists() and stamp.exists() and stamp.read_text() == key:
            return output, False
        stamp.unlink(missing_ok=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise CompileError(f"{' '.join(command)}\n{done.stdout}")
        stamp.write_text(key)
        return output, True


def cuda_libraries() -> list[CudaLibrary]:
    """The CUDA library, if it is to be built here."""
    mode = os.environ.get("SPARSE_RUNTIME_CUDA", "auto")
    if mode not in CUDA_MODES:
        raise SetupError(f"SPARSE_RUNTIME_CUDA: expected {', '.join(CUDA_MODES)}, got {mode!r}")
    if mode == "0":
        return []
    nvcc, cutlass = shutil.which("nvcc"), find_cutlass()
    if mode == "1" and nvcc is None:
        raise SetupError("SPARSE_RUNTIME_CUDA=1: nvcc is not on PATH; set 0 to go without it")
    return [] if nvcc is None else [CudaLibrary(nvcc, cutlass, optional=mode == "auto")]


class BuildExt(build_ext):
    """build_ext with flags for each file, and without the instruction sets it cannot compile."""

    def get_ext_filename(self, fullname: str) -> str:
        name: str = super().get_ext_filename(fullname)
        if isinstance(self.ext_map.get(fullname), CudaLibrary):
            return f"{name.partition('.')[0]}.so"  # not Python's, so of no version of it
        return name

    def build_extension(self, ext: Extension) -> None:
        if isinstance(ext, CudaLibrary):
            to = Path(self.get_ext_fullpath(ext.name))
            to.parent.mkdir(parents=True, exist_ok=True)
            self.warn(ext.build(to))
            return
        plain_compile = self.compiler._compile

        def compile_one(
            obj: str, src: str, extension: str, cc_args: Any, extra: Any, pp_opts: Any
        ) -> None:
            flags = ISA_FLAGS.get(Path(src).stem, [])
            plain_compile(obj, src, extension, cc_args, [*extra, *flags], pp_opts)

        for isa in ISA_FLAGS:
            macro = f"SPARSE_RUNTIME_{{}}{isa.upper()}{{}}"
            reason = self.reason_not_to_build(isa)
            if reason is None:
                ext.define_macros.append((macro.format("HAS_", ""), "1"))
            else:
                ext.define_macros.append((macro.format("", "_NOT_BUILT"), f'"{reason}"'))
                ext.sources = [s for s in ext.sources if Path(s).stem != isa]
                self.warn(f"instruction set {isa} is not built: {reason}")
        self.compiler._compile = compile_one
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = plain_compile

    def reason_not_to_build(self, isa: str) -> str | None:
        """Compiles a line of the instruction set; returns why that failed, or None."""
        flags = ISA_FLAGS[isa]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "test.cc")
            source.write_text(f"#include <immintrin.h>\n{ISA_TESTS[isa]}\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return f"the compiler does not accept {' '.join(flags)} for this machine"
        return None


SOURCES, HEADERS = sources_and_headers()

ParallelCompile("SPARSE_RUNTIME_BUILD_JOBS", default=os.cpu_count() or 1).install()
setup(
    ext_modules=[
        Extension(
            "sparse_runtime._C",
            SOURCES,
            include_dirs=["csrc", pybind11.get_include()],
            depends=HEADERS,
            extra_compile_args=COMMON_FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
        ),
        *cuda_libraries(),
    ],
    cmdclass={"build_ext": BuildExt},
)
