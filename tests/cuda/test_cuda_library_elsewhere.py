"""The built CUDA library belongs to no Python and no torch: what it asks of others, its users.

``SPARSE_RUNTIME_OTHER_PYTHONS`` names interpreters with another torch, between colons.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sparse_runtime.kernels import cuda_loading

OTHERS = "SPARSE_RUNTIME_OTHER_PYTHONS"
SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux[\w-]*)\.so.*")
# Python's C interface, PyTorch's C++ (at, c10, torch), pybind11, CUDA's runtime and its driver.
FOREIGN = re.compile(r"_?Py[A-Z_]|_ZN?K?\d*(2at|3c10|5torch|8pybind11)|cuda[A-Z]|cu[A-Z]|nvrtc")

PROGRAM = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from sparse_runtime.kernels.cuda_library import Library
library = Library(Path(sys.argv[1]))
for dtype in (torch.int8, torch.bfloat16, torch.float16):
    weight = torch.arange(-60, 60).repeat(70, 1).to(dtype)
    weight[::3, 1::2] = 0
    assert torch.equal(
        library.unpack(library.pack(weight, "dense"), "dense", dtype, (70, 120)), weight
    )
    packed = library.pack_exact(weight)
    assert torch.equal(library.unpack_exact(packed, dtype, (70, 120)), weight)
print(torch.__version__)
"""


@pytest.fixture(scope="module")
def built() -> Path:
    if not cuda_loading.BUILT.exists():
        pytest.skip("the CUDA library is not built here")
    return cuda_loading.BUILT


def output_of(program: str, *arguments: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on PATH")
    command = [found, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_it_needs_the_systems_libraries_alone(built: Path) -> None:
    text = output_of("readelf", "--dynamic", "--wide", str(built))
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert needed and all(map(SYSTEM.fullmatch, needed)), needed
    assert "(RPATH)" not in text and "(RUNPATH)" not in text


def test_it_asks_for_no_name_of_python_torch_or_cuda(built: Path) -> None:
    text = output_of("nm", "--dynamic", "--undefined-only", str(built))
    names = [line.split()[-1] for line in text.splitlines()]
    assert any(name.startswith("malloc") for name in names)  # it reads what nm writes
    assert not [name for name in names if FOREIGN.match(name)]
    for foreign in ("PyList_New", "_ZN3c105ErrorC1E", "_ZN2at4_ops", "cudaLaunchKernel"):
        assert FOREIGN.match(foreign)


def test_it_shows_the_names_of_its_header_alone(built: Path, checkout_root: Path) -> None:
    text = output_of("nm", "--dynamic", "--defined-only", str(built))
    names = {line.split()[-1] for line in text.splitlines()}
    header = (checkout_root / "csrc/cuda/api/sparse_runtime_cuda.h").read_text()
    assert names == set(re.findall(r"^[\w ]+\*? ?\*?(sr_\w+)\(", header, re.MULTILINE))


def test_another_torch_uses_it(built: Path, checkout_root: Path) -> None:
    pythons = [path for path in os.environ.get(OTHERS, "").split(os.pathsep) if path]
    if not pythons:
        pytest.skip(f"no interpreter with another torch is named by {OTHERS}")
    for python in pythons:
        done = subprocess.run(
            [python, "-c", PROGRAM, str(built), str(checkout_root)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() != torch.__version__, f"{python} has the same torch"
