"""Declares the C++ extension sparse_runtime._C; everything else is in pyproject.toml.

Each file csrc/cpu/<family>/<instruction set>.cc is compiled with the flags of its instruction set
and all other files with the compiler's defaults, so one library runs on every CPU of the
architecture and chooses at run time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

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


def sources_and_headers() -> tuple[list[str], list[str]]:
    """Returns every C++ file of the extension, relative to this one as setuptools wants it."""
    sources = [p for room in ("core", "cpu", "bindings") for p in Path("csrc", room).rglob("*.cc")]
    headers = list(Path("csrc").rglob("*.h"))
    return sorted(p.as_posix() for p in sources), sorted(p.as_posix() for p in headers)


class BuildExt(build_ext):
    """build_ext with flags for each file, and without the instruction sets it cannot compile."""

    def build_extension(self, ext: Extension) -> None:
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
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
