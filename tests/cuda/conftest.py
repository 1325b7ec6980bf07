"""The hand-written CUDA kernels, compiled for the host and run by csrc/cuda/emulate."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_interface import Kernel, SrLinear
from sparse_runtime.kernels.cuda_library import Library

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas")


class SrRange(ctypes.Structure):
    """Memory that an emulated kernel may use (csrc/cuda/emulate/library.cc)."""

    _fields_ = (("begin", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("writable", ctypes.c_int32))


class Emulator(Library):
    """The library as the host runs it."""

    launches_on_cpu = True

    def launch(self, kernel: Kernel, layer: SrLinear, device: torch.device) -> None:
        """What a GPU would do, with all memory at hand: who calls a launcher gives no ranges."""
        error = ctypes.create_string_buffer(500)
        everywhere = SrRange(None, 2**62, 1)
        status = self.handle.sr_emulate_linear(
            kernel.number,
            ctypes.byref(layer),
            ctypes.byref(everywhere),
            1,
            7,
            error,
            ctypes.c_int64(len(error)),
        )
        if status:
            raise RuntimeError(error.value.decode())

    def run(
        self,
        kernel: Kernel,
        layer: SrLinear,
        reads: Iterable[Tensor | None],
        writes: Iterable[Tensor | None],
        seed: int = 0,
    ) -> None:
        """Run a layer; RuntimeError with the emulator's words where it touches anything else."""
        marked = [(t, 0) for t in reads if t is not None]
        marked += [(t, 1) for t in writes if t is not None]
        ranges = (SrRange * len(marked))(
            *(SrRange(t.data_ptr(), t.untyped_storage().nbytes(), write) for t, write in marked)
        )
        error = ctypes.create_string_buffer(500)
        status = self.handle.sr_emulate_linear(
            kernel.number,
            ctypes.byref(layer),
            ranges,
            len(marked),
            seed,
            error,
            ctypes.c_int64(len(error)),
        )
        if status:
            raise RuntimeError(error.value.decode())


@pytest.fixture(scope="session")
def emulator(
    checkout_root: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str = "master"
) -> Emulator:
    """The kernels of csrc/cuda/mma_linear on the host; compiled once for all workers."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    library = _shared_folder(tmp_path_factory, worker_id) / "emulator.so"
    with FileLock(f"{library}.lock"):
        if not library.exists():
            csrc = checkout_root / "csrc"
            sources = [*csrc.glob("cuda/mma_linear/*.c[cu]"), *csrc.glob("cuda/emulate/*.cc")]
            sources = [source for source in sources if source.stem != "launch"]
            command = [compiler, *FLAGS, f"-I{csrc}", "-x", "c++", *map(str, sorted(sources))]
            subprocess.run([*command, "-o", str(library)], check=True, capture_output=True)
    return Emulator(library)


@pytest.fixture(scope="session")
def compile_cutlass(
    checkout_root: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str = "master"
) -> Callable[..., ctypes.CDLL]:
    """Compiles a source of tests/cuda with CUTLASS's headers; once for all workers."""
    package = importlib.util.find_spec("cutlass_library")
    nvcc, headers = shutil.which("nvcc"), os.environ.get("SPARSE_RUNTIME_CUTLASS")
    if headers is None and package is not None and package.origin is not None:
        headers = str(Path(package.origin).parent / "source/include")
    if headers is None or nvcc is None:
        pytest.skip("needs nvcc and the headers of nvidia-cutlass")
    folder = _shared_folder(tmp_path_factory, worker_id)
    command = [nvcc, "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-w", f"-I{headers}"]
    command += [f"-I{checkout_root / 'csrc'}", "--expt-relaxed-constexpr", "-DNDEBUG"]
    command += ["-gencode=arch=compute_90a,code=sm_90a"]

    def compiled(name: str, *flags: str) -> ctypes.CDLL:
        library = folder / f"{name}.so"
        source = checkout_root / "tests/cuda" / f"{name}.cu"
        with FileLock(f"{library}.lock"):
            if not library.exists():
                words = [*command, *flags, str(source), "-o", str(library)]
                subprocess.run(words, check=True, capture_output=True)
        return ctypes.CDLL(str(library))

    return compiled


def _shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder that all workers of a run see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if worker_id != "master" else folder


@pytest.fixture
def emulated(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The emulator in the place of the library that the package loads."""
    loaded = cuda_loading.Loaded(emulator, None)
    monkeypatch.setattr(cuda_loading, "load", lambda: loaded)
    return emulator
