"""The CUDA library as it is built and loaded: without a GPU, all but launching."""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_compiled import (
    SHARED_LIMITS,
    Compiled,
    name_of,
    problems,
    read_table,
    table,
)
from sparse_runtime.kernels.cuda_library import Library
from sparse_runtime.kernels.linear.linear_hopper import TILES

GOOD = Compiled("mma.int8.2to4.64x16", 80, 128, 64, 0, 14336, "IMMA.SP.16864.S8.S8", 2)

# Runs where nothing is installed: interface, kernels, a packed weight and back.
PROGRAM = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.sr_packed_bytes.restype = ctypes.c_int64
assert library.sr_abi_version() == 4
values = bytes((3 * i + 1) % 251 if i % 4 < 2 else 0 for i in range(20 * 72))
for structure in (0, 1):
    kinds = (0, structure)
    packed = ctypes.create_string_buffer(library.sr_packed_bytes(*kinds, 20, 72))
    assert library.sr_pack_weight(*kinds, values, 20, 72, packed) == 0
    back = ctypes.create_string_buffer(len(values))
    assert library.sr_unpack_weight(*kinds, packed, 20, 72, back) == 0
    assert back.raw == values
assert library.sr_pack_weight(0, 1, bytes([1] * 64), 1, 64, packed) == 2
print(sys.version_info[1], library.sr_kernel_count())
"""


def interpreters() -> list[Path]:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sorted(versions.glob(f"3.{minor}.*/bin/python")) for minor in (10, 11, 12, 13)]
    return [Path(sys.executable), *(paths[-1] for paths in found if paths)]


@pytest.fixture
def built() -> Path:
    if not cuda_loading.BUILT.exists():
        pytest.skip("the CUDA library is not built here")
    return cuda_loading.BUILT


@pytest.mark.parametrize("python", interpreters(), ids=str)
def test_every_python_loads_it_without_torch(built: Path, python: Path) -> None:
    command = [str(python), "-S", "-c", PROGRAM, str(built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) in (27, 51)  # without and with those for sm_90a


def test_it_shows_its_own_functions_alone(built: Path) -> None:
    library = ctypes.CDLL(str(built))
    assert hasattr(library, "sr_linear")
    # The CUDA runtime inside would otherwise answer calls of other libraries.
    assert not hasattr(library, "cudaLaunchKernel")


def test_it_packs_as_the_emulated_kernels_read(built: Path, emulator) -> None:
    library = Library(built)
    assert library.kernels[: len(emulator.kernels)] == emulator.kernels
    assert {kernel.order for kernel in library.kernels[len(emulator.kernels) :]} <= {"hopper"}
    weight = torch.arange(-30, 40).repeat(132, 1).t().to(torch.int8).contiguous()
    weight[:, 2::4] = 0
    weight[:, 3::4] = 0
    for structure in ("dense", "2:4"):
        hopper = library.pack_hopper(weight, structure)
        assert torch.equal(hopper, emulator.pack_hopper(weight, structure))
        packed = library.pack(weight, structure)
        assert torch.equal(packed, emulator.pack(weight, structure))
        assert torch.equal(library.unpack(packed, structure, torch.int8, (70, 132)), weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches where there is a GPU")
def test_without_a_gpu_a_launch_is_refused_in_words(built: Path) -> None:
    assert cuda_loading.not_launched() == "there is no GPU"
    library = Library(built)
    with pytest.raises(RuntimeError, match="the CUDA library"):
        library._check(library.handle.sr_pack_weight_device(0, 0, *[None, 1, 1, None, None, None]))


def test_another_interface_is_refused(emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_runtime.kernels.cuda_library.ABI_VERSION", 99)
    with pytest.raises(OSError, match="interface version 4, this package needs 99"):
        Library(Path(emulator.source))


def test_loading_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = cuda_loading.load.__wrapped__
    monkeypatch.setattr(cuda_loading, "BUILT", tmp_path / "library.so")
    assert load().library is None and "SPARSE_RUNTIME_CUDA=1" in load().reason
    (tmp_path / "library.so").write_text("not a library")
    assert load().library is None and "library.so" in load().reason


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("0", 0, "sparse-runtime"),
        ("auto", 0, "sparse-runtime"),
        ("1", 1, "nvcc is not on PATH"),
        ("yes", 1, "expected auto, 1, 0, got 'yes'"),
    ],
)
def test_the_build_says_what_it_needs(checkout_root: Path, mode: str, status, words: str) -> None:
    pytest.importorskip("pybind11")
    environment = {**os.environ, "SPARSE_RUNTIME_CUDA": mode, "PATH": "/nowhere"}
    command = [sys.executable, "setup.py", "--name"]
    done = subprocess.run(
        command, cwd=checkout_root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode != 0) == bool(status)
    assert words in done.stdout + done.stderr


def test_a_wrong_folder_of_cutlass_is_no_warning(checkout_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    version = tmp_path / "cutlass/version.h"
    version.parent.mkdir()
    command = [sys.executable, "setup.py", "--name"]
    environment = {**os.environ, "SPARSE_RUNTIME_CUDA": "auto"}
    for major, accepted in ((3, False), (4, True)):
        version.write_text(f"#define CUTLASS_MAJOR {major}\n#define CUTLASS_MINOR 2\n")
        environment["SPARSE_RUNTIME_CUTLASS"] = str(tmp_path)
        done = subprocess.run(
            command, cwd=checkout_root, env=environment, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode == 0) == accepted
        assert accepted or "is not of CUTLASS 4.2" in done.stderr


def test_objects_depend_on_what_their_sources_include(
    checkout_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pybind11")
    monkeypatch.chdir(checkout_root)
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    included = runpy.run_path("setup.py")["included"]
    hopper = included(Path("csrc/cuda/hopper_linear/int8_2to4_small.cu"))
    # Through kernel.h, epilogue.h and finish.h; nothing of the other family's kernels.
    assert {"csrc/cuda/hopper_linear/finish.h", "csrc/cuda/mma_linear/quantize.h"} <= set(hopper)
    assert "csrc/cuda/mma_linear/kernel.h" not in hopper
    mma = included(Path("csrc/cuda/mma_linear/int8_2to4.cu"))
    assert "csrc/cuda/mma_linear/kernel.h" in mma
    assert not any("hopper_linear" in path for path in mma)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (
            "_ZN14sparse_runtime6hopper13linear_kernelIaLb1ENS0_4TileILi128ELi256EN7cutlass4gemm",
            "hopper.int8.2to4.128x256",
        ),
        (
            "_ZN14sparse_runtime6hopper13linear_kernelIN7cutlass10bfloat16_tELb0ENS0_4TileILi64ELi32E",
            "hopper.bf16.dense.64x32",
        ),
        (
            "_ZN14sparse_runtime6hopper13linear_kernelIN7cutlass6half_tELb1ENS0_4TileILi64ELi128EN",
            "hopper.f16.2to4.64x128",
        ),
        (
            "_ZN14sparse_runtime3mma13linear_kernelINS0_4TileIaLNS0_9StructureE1ELi64ELi16ELi4ELi1"
            "ELi4EEEEEv8SrLinear",
            "mma.int8.2to4.64x16",
        ),
        ("_ZN14sparse_runtime6hopper15quantize_kernelE8SrLinear", None),
    ],
)
def test_functions_are_known_by_what_compilers_call_them(function: str, name: str | None) -> None:
    assert name_of(function) == name


def test_a_table_is_read_as_it_was_written() -> None:
    built = [GOOD, Compiled("mma.bf16.dense.64x64", 90, 128, 101, 0, 65536, "none", 0)]
    assert read_table("# A title\n\n" + table(built)) == built


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"spills": 8}, "spills 8 bytes"),
        ({"shared": SHARED_LIMITS[80] + 1}, "shared memory"),
        ({"instruction": "IMMA.16832.S8.S8"}, "expected products by IMMA.SP"),  # not sparse
        ({"count": 0}, "expected products"),
    ],
)
def test_what_is_wrong_with_a_kernel_is_said(changes: dict, complaint: str) -> None:
    found = list(problems(Compiled(**{**GOOD.__dict__, **changes})))
    assert len(found) == 1 and complaint in found[0] and GOOD.kernel in found[0]
    assert not list(problems(GOOD))


def test_a_warpgroup_multiplies_by_its_tile_and_sparsely() -> None:
    good = Compiled(
        "hopper.int8.2to4.128x256", 90, 384, 168, 0, 191488, "IGMMA.SP.64x256x64.S8.S8", 2
    )
    assert not list(problems(good))
    for instruction in ("IGMMA.64x256x32.S8.S8", "IGMMA.SP.64x128x64.S8.S8", "IMMA.SP.16864.S8.S8"):
        assert "expected products" in next(problems(replace(good, instruction=instruction)))
    assert "spills 16 bytes" in next(problems(replace(good, spills=16)))


def test_the_committed_table_holds_every_kernel(checkout_root: Path, emulator) -> None:
    known = read_table((checkout_root / "docs/kernels/cuda_compiled.md").read_text())
    wanted = {(kernel.name, capability) for kernel in emulator.kernels for capability in (80, 90)}
    kinds = product(("int8", "bf16", "f16"), ("dense", "2to4"), TILES)
    wanted |= {(f"hopper.{t}.{s}.{i.block_n}x{i.block_m}", 90) for t, s, i in kinds}
    assert {(kernel.kernel, kernel.capability) for kernel in known} == wanted
    wrong = [line for kernel in known for line in problems(kernel)]
    assert not wrong, wrong
