"""Which GPU, driver, packages and commit a measurement was made with."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sparse_runtime.benchmarks.records import commit_of_checkout
from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_interface import ORDERS
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary

PACKAGES = ("sparse-runtime", "torch", "triton", "transformers", "torchao", "cupy-cuda13x", "numpy")


ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("benchmarks", "csrc", "kernels", "sparse_runtime", "tests")
SOURCES = {".c", ".cc", ".cu", ".h", ".map", ".py"}


@dataclass(frozen=True)
class GpuSurroundings:
    """Where and when a run was made.

    Attributes:
        device: name of the GPU.
        capability: 90 for sm_90.
        multiprocessors: of the GPU.
        l2_bytes: its second-level cache.
        memory_bytes: its memory.
        driver: version of the driver, or None where nvidia-smi is missing.
        cuda: version of CUDA that torch was built with.
        versions: of the packages that the figures depend on.
        commit: see :func:`commit`.
        time: start of the run, UTC, ISO 8601.
        library: see :func:`library`.
    """

    device: str
    capability: int
    multiprocessors: int
    l2_bytes: int
    memory_bytes: int
    driver: str | None
    cuda: str | None
    versions: dict[str, str]
    commit: str
    time: str
    library: str


def surroundings(device: int = 0) -> GpuSurroundings:
    """Describe one GPU, this installation and this moment."""
    found = torch.cuda.get_device_properties(device)
    return GpuSurroundings(
        device=found.name,
        capability=10 * found.major + found.minor,
        multiprocessors=found.multi_processor_count,
        l2_bytes=found.L2_cache_size,
        memory_bytes=found.total_memory,
        driver=_driver(),
        cuda=torch.version.cuda,
        versions=_versions(),
        commit=commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        library=library(),
    )


def commit() -> str:
    """What ``SPARSE_RUNTIME_COMMIT`` says, or the checkout's commit, "+" and a hash of the sources
    behind it where files were changed; of a copied tree without history "sources-" and the hash."""
    named = os.environ.get("SPARSE_RUNTIME_COMMIT") or commit_of_checkout() or "sources-"
    return named + _hash_of_sources() if named.endswith(("+", "sources-")) else named


@cache
def library() -> str:
    """Which hand-written kernels run: "built" and a hash of the library, "NVRTC" and its version,
    or "Triton alone" for none; and which of them are left out."""
    found, _ = cuda_loading.load()
    if found is None:
        return "Triton alone"
    if isinstance(found, RuntimeLibrary):
        name = f"NVRTC {'.'.join(map(str, found.nvrtc.version))}"
    else:
        name = f"built {hashlib.sha256(cuda_loading.BUILT.read_bytes()).hexdigest()[:12]}"
    without = [order for order in ORDERS if cuda_loading.left_out(order) is not None]
    return f"{name} without {', '.join(without)}" if without else name


@cache
def _hash_of_sources() -> str:
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def file_name(device: str) -> str:
    """The results' file of a device: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3.jsonl"."""
    words = "".join(c if c.isalnum() else " " for c in device.lower()).split()
    return f"{'-'.join(words)}.jsonl"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
