"""The report of info(), whole and where parts of the installation are missing."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import sparse_runtime
from sparse_runtime.kernels import cuda_loading
from sparse_runtime.tools import information
from sparse_runtime.tools.information import Gpu, Info, Kernel, info


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A C++ extension that answers what a machine without AVX-512 would."""
    sets = [
        {"name": "generic", "built": True, "available": True, "reason": ""},
        {"name": "avx512_vnni", "built": True, "available": False, "reason": "the CPU lacks it"},
    ]
    module = SimpleNamespace(
        cpu_features=lambda: {"avx2": True, "avx512_vnni": False},
        build_info=lambda: {"compiler": "g++ 12", "cxx_standard": 17},
        isas=lambda: sets,
    )
    monkeypatch.setitem(sys.modules, "sparse_runtime._C", module)
    return module


def register(monkeypatch: pytest.MonkeyPatch, *candidates: SimpleNamespace) -> None:
    """Puts `candidates` in place of the kernels that the operations register."""
    module = SimpleNamespace(CANDIDATES=candidates)
    monkeypatch.setitem(sys.modules, "sparse_runtime.ops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sparse_runtime.ops.registry", module)


def candidate(name: str, backend: str, reason: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, backend=backend, unavailable=lambda: reason)


def test_the_report_of_this_machine_is_whole() -> None:
    found = info()
    assert found.version == sparse_runtime.__version__
    versions = {package.name: package.version for package in found.packages}
    assert versions["torch"] == torch.__version__
    assert 1 <= found.cpu.usable_cores <= found.cpu.logical_cores
    assert found.cpu.model
    # Whatever is missing says why, and nothing that is there carries a reason.
    for part in (
        *found.packages,
        *found.kernels,
        *found.backends,
        *found.extension.instruction_sets,
    ):
        present = part.version is not None if hasattr(part, "version") else part.available
        assert present == (part.reason is None), part
    assert found.extension.available == (found.extension.reason is None)
    assert found.cuda_library.available == (found.cuda_library.reason is None)
    assert found.cuda_library.available == bool(found.cuda_library.kernels)
    assert bool(found.gpus) == (found.gpu_reason is None)


def test_the_real_extension_and_registry_are_listed() -> None:
    """Fails where the checkout is not built: the tests need the extension as much as this does."""
    found = info()
    assert found.extension.reason is None
    sets = {isa.name: isa for isa in found.extension.instruction_sets}
    assert sets["generic"].available
    assert {kernel.backend for kernel in found.kernels} >= {"reference", "cpu"}
    available = {backend.name: backend.available for backend in found.backends}
    assert available["reference"]
    assert available["cpu"]


def test_the_dictionary_is_json_and_says_the_same() -> None:
    found = info()
    tree = found.to_dict()
    assert json.loads(json.dumps(tree)) == tree
    assert set(tree) == {field.name for field in dataclasses.fields(Info)}
    assert tree["cpu"]["usable_cores"] == found.cpu.usable_cores


def test_text_and_terminal_show_every_version_and_reason(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, candidate("int8_cpp", "cpu"), candidate("nm_triton", "cuda", "no triton"))
    found = info()
    stream = io.StringIO()
    Console(file=stream, width=200).print(found)
    for rendered in (str(found), stream.getvalue()):
        for part in ("avx2", "the CPU lacks it", "g++ 12", "int8_cpp", "no triton", found.python):
            assert part in rendered
        for package in found.packages:
            assert (package.version or package.reason or "?") in rendered


def test_instruction_sets_and_features_come_from_the_extension(native: SimpleNamespace) -> None:
    found = info()
    assert found.cpu.features == ("avx2",)
    generic, vnni = found.extension.instruction_sets
    assert (generic.available, generic.reason) == (True, None)
    assert (vnni.built, vnni.available, vnni.reason) == (True, False, "the CPU lacks it")
    assert found.extension.build["cxx_standard"] == 17


def test_a_missing_extension_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparse_runtime._C", None)
    found = info()
    assert not found.extension.available
    assert "pip install -e ." in (found.extension.reason or "")
    assert found.cpu.features == ()
    assert "pip install -e ." in found.format()


def test_a_backend_without_a_usable_kernel_gives_each_reason_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(
        monkeypatch,
        candidate("dense", "reference"),
        candidate("int8", "cpu", "no extension"),
        candidate("int8_gelu", "cpu", "no extension"),
        candidate("bf16", "cpu", "no AVX-512"),
    )
    found = info()
    assert found.kernels[1] == Kernel("int8", "cpu", False, "no extension")
    backends = {backend.name: backend for backend in found.backends}
    assert backends["reference"].available
    assert backends["reference"].reason is None
    assert backends["cpu"].reason == "no extension; no AVX-512"
    assert backends["cuda"].reason == "this version has no kernels for it"


def test_a_package_under_any_of_its_distribution_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(distribution: str) -> str:
        if distribution == "cupy-cuda12x":
            return "14.0"
        raise information.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(information.metadata, "version", version)
    packages = {package.name: package for package in info().packages}
    assert packages["cupy"].version == "14.0"
    assert packages["triton"].version is None
    assert "sparse-runtime[gpu]" in (packages["triton"].reason or "")


def test_gpus_are_listed_with_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    found = info()
    assert found.gpus == (Gpu("NVIDIA H100", "9.0", 80 * 2**30),)
    assert found.gpu_reason is None
    assert "compute capability 9.0, 80 GiB" in found.format()


def test_the_report_works_without_torch_and_numpy(checkout_root: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'safetensors'): sys.modules[name] = None\n"
        "from sparse_runtime.tools.information import info\n"
        "found = info()\n"
        "assert not found.kernels and not any(b.available for b in found.backends)\n"
        "print(found.format())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "GPUs are found through torch, which does not import" in done.stdout
    assert "the operations do not import" in done.stdout


def test_the_cuda_kernels_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(source="built", kernels=(SimpleNamespace(name="mma.int8"),) * 2)
    monkeypatch.setattr(cuda_loading, "load", lambda: (library, None))
    assert "hand-written  2 kernels, none of them for sm_90a; built" in str(info())
    library.kernels += (SimpleNamespace(name="hopper.int8"),)
    assert "hand-written  3 kernels, 1 of them for sm_90a; built" in str(info())
    monkeypatch.setattr(cuda_loading, "load", lambda: (None, "was not built"))
    assert "hand-written  no: was not built; Triton kernels run in their place" in str(info())
