"""How setup.py builds the CUDA library, with a compiler that only says that it was called."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pybind11")

NVCC = """#!/bin/sh
while [ $# -gt 1 ]; do
  if [ "$1" = -c ]; then echo "$2" >> calls; fi
  if [ "$1" = -o ]; then touch "$2"; fi
  shift
done
"""


class Build:
    """A copy of the sources and a folder of objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"

    def run(self) -> tuple[str, set[str]]:
        """What the build says, and the files that it has compiled."""
        self.calls.write_text("")
        (library,) = runpy.run_path("setup.py")["cuda_libraries"]()
        said = library.build(self.folder / "library.so")
        return said, {
            f"{Path(c).parent.name}/{Path(c).stem}" for c in self.calls.read_text().split()
        }


@pytest.fixture
def build(checkout_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    for room in ("core", "cuda"):
        shutil.copytree(checkout_root / "csrc" / room, tmp_path / "csrc" / room)
    shutil.copy(checkout_root / "setup.py", tmp_path)
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text(NVCC)
    compiler.chmod(0o755)
    version = tmp_path / "cutlass/version.h"
    version.parent.mkdir()
    version.write_text("#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SPARSE_RUNTIME_CUDA", "1")
    monkeypatch.setenv("SPARSE_RUNTIME_CUTLASS", str(tmp_path))
    monkeypatch.setenv("SPARSE_RUNTIME_CUDA_OBJECTS", str(tmp_path / "objects"))
    return Build(tmp_path)


def test_only_what_has_changed_is_compiled_again(build: Build) -> None:
    said, compiled = build.run()
    kinds = {path.split("/")[0] for path in compiled}
    assert kinds == {"hopper_linear", "mma_linear"} and "sm_90a" not in said
    assert {"hopper_linear/int8_2to4_large", "mma_linear/int8_2to4"} <= compiled
    assert build.run()[1] == set()
    changed = Path("csrc/cuda/hopper_linear/finish.h")
    changed.write_text(changed.read_text() + "\n")
    kernels = {path for path in compiled if path.startswith("hopper") and path.count("_") > 2}
    assert len(kernels) == 12 and build.run()[1] == kernels
    changed = Path("csrc/cuda/mma_linear/kernel.h")
    changed.write_text(changed.read_text() + "\n")
    again = build.run()[1]
    assert "mma_linear/int8_dense" in again
    assert not any(path.startswith("hopper") for path in again)


def test_other_headers_of_cutlass_are_noticed(build: Build) -> None:
    _, compiled = build.run()
    version = Path("cutlass/version.h")
    version.write_text(version.read_text() + "#define CUTLASS_PATCH 1\n")
    assert build.run()[1] == {path for path in compiled if path.startswith("hopper")}


def test_without_the_headers_what_is_left_out_is_said(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARSE_RUNTIME_CUTLASS")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said, compiled = build.run()
    assert "no kernels for sm_90a" in said and "SPARSE_RUNTIME_CUTLASS" in said
    assert compiled and not any(path.startswith("hopper") for path in compiled)
