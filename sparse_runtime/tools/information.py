"""What this installation can run, and for each thing that it cannot, why.

Nothing here needs torch or the C++ extension: a report is worth most on a machine where something
is missing.
"""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

BACKENDS = ("reference", "cpu", "cuda")

# Import name -> names under which it is distributed, and how to get it.
_PACKAGES = {
    "torch": (("torch",), "pip install torch"),
    "transformers": (("transformers",), "pip install transformers"),
    "safetensors": (("safetensors",), "pip install safetensors"),
    "tokenizers": (("tokenizers",), "pip install tokenizers"),
    "numpy": (("numpy",), "pip install numpy"),
    "triton": (("triton",), "pip install 'sparse-runtime[gpu]'"),
    "cupy": (
        ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "pip install 'sparse-runtime[gpu]'",
    ),
}


@dataclass(frozen=True)
class Package:
    """A package that sparse_runtime uses; `version` is None where `reason` says why."""

    name: str
    version: str | None
    reason: str | None


@dataclass(frozen=True)
class Cpu:
    """The processor; `features` are the extensions that kernels ask for and the system enables."""

    model: str
    architecture: str
    logical_cores: int
    usable_cores: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class InstructionSet:
    """One instruction set of the C++ kernels: compiled in, and usable on this processor."""

    name: str
    built: bool
    available: bool
    reason: str | None


@dataclass(frozen=True)
class Extension:
    """The C++ extension; `reason` says why it did not import."""

    available: bool
    reason: str | None
    build: dict[str, Any]
    instruction_sets: tuple[InstructionSet, ...]


@dataclass(frozen=True)
class CudaLibrary:
    """The hand-written CUDA kernels: where they come from, or why Triton's run in their place."""

    available: bool
    source: str | None
    kernels: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes, capability as in "9.0"."""

    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class Kernel:
    """One candidate of the operations, with the reason where it cannot run here."""

    name: str
    backend: str
    available: bool
    reason: str | None


@dataclass(frozen=True)
class Backend:
    """A backend is available where at least one of its kernels is."""

    name: str
    available: bool
    reason: str | None


@dataclass(frozen=True)
class Info:
    """What `info()` found. Prints as text; `to_dict()` gives plain types for JSON."""

    version: str
    python: str
    system: str
    packages: tuple[Package, ...]
    cpu: Cpu
    extension: Extension
    cuda_library: CudaLibrary
    gpus: tuple[Gpu, ...]
    gpu_reason: str | None
    kernels: tuple[Kernel, ...]
    backends: tuple[Backend, ...]

    def to_dict(self) -> dict[str, Any]:
        """The whole tree as dictionaries, lists, strings, numbers and None."""
        return _plain(asdict(self))

    def format(self) -> str:
        """The report as text, one section a paragraph."""
        from .information_view import as_text

        return as_text(self)

    def __str__(self) -> str:
        return self.format()

    def __rich__(self) -> Group:
        """The report for a terminal."""
        from .information_view import as_tables

        return as_tables(self)


def info() -> Info:
    """Gathers versions, CPU, GPUs, kernels and backends, with a reason for each thing missing.

    Returns:
        The report. It is complete also where torch or the C++ extension is not installed.
    """
    import sparse_runtime

    features, extension = _extension()
    gpus, gpu_reason = _gpus()
    kernels, kernels_reason = _kernels()
    return Info(
        version=sparse_runtime.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=platform.platform(),
        packages=tuple(_package(name) for name in _PACKAGES),
        cpu=_cpu(features),
        extension=extension,
        cuda_library=_cuda_library(),
        gpus=gpus,
        gpu_reason=gpu_reason,
        kernels=kernels,
        backends=tuple(_backend(name, kernels, kernels_reason) for name in BACKENDS),
    )


def _package(name: str) -> Package:
    distributions, remedy = _PACKAGES[name]
    for distribution in distributions:
        try:
            return Package(name, metadata.version(distribution), None)
        except metadata.PackageNotFoundError:
            continue
    return Package(name, None, f"not installed; {remedy}")


def _cpu(features: dict[str, bool]) -> Cpu:
    logical = os.cpu_count() or 1
    # A container or taskset may leave the process fewer cores than the machine has.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    present = tuple(name for name, enabled in features.items() if enabled)
    return Cpu(_cpu_model(), platform.machine(), logical, usable, present)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _extension() -> tuple[dict[str, bool], Extension]:
    """CPU features by name, and the state of the C++ extension that reads them."""
    try:
        native = importlib.import_module("sparse_runtime._C")
    except ImportError as error:
        reason = f"sparse_runtime._C does not import: {error}; build it with: pip install -e ."
        return {}, Extension(False, reason, {}, ())
    sets = tuple(
        InstructionSet(isa["name"], isa["built"], isa["available"], isa["reason"] or None)
        for isa in native.isas()
    )
    return dict(native.cpu_features()), Extension(True, None, dict(native.build_info()), sets)


def _cuda_library() -> CudaLibrary:
    try:
        from ..kernels.cuda_loading import load
    except ImportError as error:
        return CudaLibrary(False, None, (), f"its launchers do not import: {error}")
    library, reason = load()
    if library is None:
        return CudaLibrary(False, None, (), reason)
    names = tuple(kernel.name for kernel in library.kernels)
    return CudaLibrary(True, library.source, names, None)


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    try:
        import torch
    except ImportError as error:
        return (), f"GPUs are found through torch, which does not import: {error}"
    if torch.version.cuda is None:
        return (), f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return (), "torch sees no NVIDIA GPU"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(p.name, f"{p.major}.{p.minor}", p.total_memory) for p in properties), None


def _kernels() -> tuple[tuple[Kernel, ...], str | None]:
    """Every registered kernel, or the reason why none could be listed."""
    try:
        from ..ops.registry import CANDIDATES
    except ImportError as error:
        return (), f"the operations do not import: {error}"
    kernels = []
    for candidate in CANDIDATES:
        reason = candidate.unavailable()
        kernels.append(Kernel(candidate.name, candidate.backend, reason is None, reason))
    return tuple(kernels), None


def _backend(name: str, kernels: tuple[Kernel, ...], reason: str | None) -> Backend:
    if reason is not None:
        return Backend(name, False, reason)
    own = [kernel for kernel in kernels if kernel.backend == name]
    if any(kernel.available for kernel in own):
        return Backend(name, True, None)
    if not own:
        return Backend(name, False, "this version has no kernels for it")
    # Kernels of one backend usually lack the same thing: each reason is said once.
    return Backend(name, False, "; ".join(dict.fromkeys(k.reason or "" for k in own)))


def _plain(value: Any) -> Any:
    """The same value with tuples as lists, which is what JSON makes of them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
