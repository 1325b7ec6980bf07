"""The kernels as NVRTC would compile them: what a machine without NVRTC or a GPU can say."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels import cuda_loading, cuda_nvrtc, nvrtc
from sparse_runtime.kernels.cuda_compiled import tile_of
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary
from sparse_runtime.kernels.nvrtc import HEADERS, OPTIONS, PROGRAM, SOURCES, Nvrtc

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas")


class HostLibrary(RuntimeLibrary):
    """Packs and unpacks by the kernels, run on the host in the place of a GPU."""

    def __init__(self, path: Path) -> None:
        self.host = ctypes.CDLL(str(path))
        self.prepared: list[str] = []

    def _functions(self, group: str, device: int) -> dict[str, Any]:
        self.prepared.append(group)
        found = {}
        for expression in cuda_nvrtc._expressions(group) if group == "pack" else ():
            name = "unpack" if "unpack" in expression else "pack"
            size = 1 if "char" in expression else 2
            found[expression] = SimpleNamespace(handle=getattr(self.host, f"{name}_{size}"))
        return found

    def _launch(self, handle, grid, threads, shared, device, *arguments: Any) -> None:
        assert (threads, shared) == (32, 0)
        handle(*grid, *(ctypes.byref(argument) for argument in arguments))


@pytest.fixture(scope="module")
def packers(checkout_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pack_kernels.cc, compiled."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    path = tmp_path_factory.mktemp("packers") / "pack_kernels.so"
    source = checkout_root / "tests/cuda/pack_kernels.cc"
    command = [compiler, *FLAGS, f"-I{SOURCES}", str(source), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def host(packers: Path, monkeypatch: pytest.MonkeyPatch) -> HostLibrary:
    monkeypatch.setattr(cuda_nvrtc, "_gpu_of", lambda tensor: tensor.device)
    monkeypatch.setattr(cuda_nvrtc, "_number", lambda device: 0)
    return HostLibrary(packers)


def weight_of(dtype: torch.dtype, structure: str, shape: tuple[int, int]) -> Tensor:
    numbers = torch.Generator().manual_seed(sum(shape))
    weight = torch.randint(-128, 128, shape, generator=numbers).to(dtype)
    if structure == "2:4":
        weight[:, 1::4] = 0
        weight[:, 2::4] = 0
    if dtype != torch.int8:
        weight[0, 0] = -0.0
    return weight


# One value; parts of a tile and a slab; several of both.
@pytest.mark.parametrize("shape", [(1, 1), (17, 66), (70, 132)])
@pytest.mark.parametrize("structure", ["dense", "2:4"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16], ids=str)
def test_packing_kernels_are_each_others_inverse(
    host: HostLibrary, emulator, dtype: torch.dtype, structure: str, shape: tuple[int, int]
) -> None:
    weight = weight_of(dtype, structure, shape)
    packed = host.pack(weight, structure)
    assert torch.equal(packed, emulator.pack(weight, structure))
    back = host.unpack(packed, structure, dtype, shape)
    kind = torch.int8 if dtype == torch.int8 else torch.int16
    assert torch.equal(back.view(kind), weight.view(kind))
    # The linear kernels are there before a graph is captured.
    assert cuda_nvrtc._group(dtype, structure) in host.prepared


def test_any_weight_comes_back_from_its_exact_form(host: HostLibrary, emulator) -> None:
    weight = weight_of(torch.int8, "dense", (70, 132))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.8] = 0
    packed, known = host.pack_exact(weight), emulator.pack_exact(weight)
    assert all(map(torch.equal, packed, known)) and 0 < packed.extra < 1
    assert torch.equal(host.unpack_exact(packed, torch.int8, (70, 132)), weight)
    assert cuda_nvrtc._group(torch.int8, "exact") in host.prepared


def test_three_of_four_are_refused(host: HostLibrary) -> None:
    with pytest.raises(ValueError, match="two nonzero"):
        host.pack(torch.ones(4, 64, dtype=torch.int8), "2:4")


class FakeCompiler:
    """NVRTC's functions, as ctypes calls them."""

    def __init__(self, version: tuple[int, int] = (13, 0), log: str | None = None) -> None:
        self.number, self.log, self.options, self.runs = version, log, (), 0
        self.nvrtcGetErrorString = lambda status: b"invalid option"

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.number
        return 0

    def nvrtcCreateProgram(self, program: Any, *described: Any) -> int:
        assert described[2] == len(HEADERS)
        return 0

    def nvrtcAddNameExpression(self, program: Any, expression: bytes) -> int:
        return 0

    def nvrtcCompileProgram(self, program: Any, count: int, options: Any) -> int:
        self.options, self.runs = tuple(options), self.runs + 1
        return 6 if self.log is not None else 0

    def nvrtcGetLoweredName(self, program: Any, expression: bytes, name: Any) -> int:
        name._obj.value = b"lowered " + expression
        return 0

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> int:
        size._obj.value = 8
        return 0

    def nvrtcGetCUBIN(self, program: Any, text: Any) -> int:
        text.raw = b"\x7fELF\n\0\n\n"  # lines, as machine code may have them
        return 0

    def nvrtcGetProgramLogSize(self, program: Any, size: Any) -> int:
        size._obj.value = len(self.log or "") + 1
        return 0

    def nvrtcGetProgramLog(self, program: Any, text: Any) -> int:
        text.value = (self.log or "").encode()
        return 0

    def nvrtcDestroyProgram(self, program: Any) -> int:
        return 0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    compiler = FakeCompiler()
    monkeypatch.setattr(nvrtc, "_load_nvrtc", lambda: compiler)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return compiler


def test_what_was_compiled_is_kept(fake: FakeCompiler, tmp_path: Path) -> None:
    first = Nvrtc().compiled(("a<1>", "b"), 0)
    assert first == (b"\x7fELF\n\0\n\n", {"a<1>": "lowered a<1>", "b": "lowered b"})
    assert Nvrtc().compiled(("a<1>", "b"), 0) == first and fake.runs == 1
    assert b"--gpu-architecture=sm_90" in fake.options and b"--fmad=false" in fake.options
    (kept,) = (tmp_path / "sparse_runtime").iterdir()  # and nothing half-written
    for damaged in (b"", kept.read_bytes()[:-1], b"x" + kept.read_bytes()):
        kept.write_bytes(damaged)
        assert Nvrtc().compiled(("a<1>", "b"), 0) == first
    assert fake.runs == 4


@pytest.mark.parametrize("changed", ["kernels", "sources", "architecture", "version", "options"])
def test_another_of_anything_is_compiled_anew(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    Nvrtc().compiled(("a",), 0)
    if changed == "sources":
        monkeypatch.setattr(nvrtc, "_sources", lambda: b"other")
    if changed == "architecture":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    if changed == "version":
        fake.number = (13, 1)
    if changed == "options":
        monkeypatch.setattr(nvrtc, "OPTIONS", (*OPTIONS, "--ptxas-options=-O1"))
    Nvrtc().compiled(("b",) if changed == "kernels" else ("a",), 0)
    assert fake.runs == 2


def test_a_source_is_its_text_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    for room, text in (("core", "1"), ("core", "2"), ("cuda", "2")):
        path = tmp_path / room / "x.h"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found.add(nvrtc._sources.__wrapped__())
        path.unlink()
    assert len(found) == 3


def test_without_a_cache_everything_runs(fake: FakeCompiler, tmp_path: Path) -> None:
    (tmp_path / "sparse_runtime").write_text("a file where the folder would be")
    for _ in range(2):
        assert Nvrtc().compiled(("a",), 0)[1] == {"a": "lowered a"}
    assert fake.runs == 2


def test_refusals_are_in_words(fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.log = "kernel.h(3): error: no such thing"
    with pytest.raises(RuntimeError, match=r"does not compile .*no such thing"):
        Nvrtc().compile(("a",), "sm_90")
    fake.log = None
    fake.nvrtcCreateProgram = lambda *arguments: 4
    with pytest.raises(RuntimeError, match="NVRTC: invalid option"):
        Nvrtc().compile(("a",), "sm_90")
    fake.number = (12, 4)
    with pytest.raises(RuntimeError, match=r"NVRTC 12\.4: 12\.5 or later is needed"):
        Nvrtc()


def test_loading_names_what_is_missing_in_each_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_loading, "BUILT", tmp_path / "library.so")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    found = cuda_loading.load.__wrapped__()
    assert found.library is None
    assert "library.so was not built" in found.reason
    assert "libnvrtc.so.99 was not found; pip install nvidia-cuda-nvrtc" in found.reason


def test_what_is_loaded_says_why_it_is_not_the_built_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_loading, "BUILT", tmp_path / "library.so")
    made = SimpleNamespace(source="compiled by NVRTC 13.0")
    monkeypatch.setattr(cuda_loading, "RuntimeLibrary", lambda: made)
    assert cuda_loading.load.__wrapped__().library is made
    assert made.source == "compiled by NVRTC 13.0, because library.so was not built"


def test_the_headers_stand_in_for_the_standard_librarys(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    for name, text in HEADERS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "program.cc").write_text(
        "".join(f"#include <{name}>\n" for name in HEADERS)
        + 'static_assert(sizeof(std::int8_t) == 1 && sizeof(std::uint64_t) == 8, "");\n'
        'static_assert(std::int16_t(-1) < 0 && std::uint32_t(-1) > 0, "");\n'
        'static_assert(sizeof(std::conditional_t<true, char, int>) == 1, "");\n'
        'static_assert(sizeof(std::conditional_t<false, char, int>) == sizeof(int), "");\n'
    )
    command = [compiler, "-std=c++17", "-nostdinc", "-fsyntax-only", "-Werror", f"-I{tmp_path}"]
    done = subprocess.run(
        [*command, str(tmp_path / "program.cc")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", ["pack", "signed char, sparse_runtime::mma::Structure::kExact"])
def test_nvcc_compiles_the_program_and_knows_the_names(group: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not on PATH")
    expressions = cuda_nvrtc._expressions(group)
    assert group == "pack" or any(group in expression for expression in expressions)
    chosen = expressions if group == "pack" else expressions[-2:]  # the smallest tile, and rows
    uses = ",\n".join(f"reinterpret_cast<const void*>(&{expression})" for expression in chosen)
    program = tmp_path / "program.cu"
    program.write_text(f"{PROGRAM}\nconst void* const kernels[] = {{{uses}}};\n")
    own = [option for option in OPTIONS if option != "--device-as-default-execution-space"]
    command = [compiler, "-ptx", *own, "-arch=compute_80", f"-I{SOURCES}", str(program)]
    subprocess.run([*command, "-o", f"{program}.ptx"], check=True, capture_output=True, timeout=120)
    names = re.findall(r"\.entry (\w+)", Path(f"{program}.ptx").read_text())
    # Rows are quantized by no template: their kernel is there whatever was asked for.
    kernels = [name for name in names if "quantize_kernel" not in name]
    assert len(names) == len(kernels) + 1 and len(kernels) == (4 if group == "pack" else 1)
    for name in kernels:
        assert (tile_of(name) is None) == (group == "pack")


def test_nvrtc_is_given_the_same_kernels(emulator) -> None:
    assert tuple(cuda_nvrtc._kernels()) == emulator.kernels
    lazy = object.__new__(RuntimeLibrary)  # without a GPU or NVRTC
    for kernel in emulator.kernels:
        for sizes in ((1, 16, 1), (130, 257, 4)):
            needs = emulator.workspace_needs(kernel, *sizes)
            assert lazy.workspace_needs(kernel, *sizes) == needs
        group = cuda_nvrtc._group(kernel.dtype, kernel.structure)
        assert cuda_nvrtc._expression(kernel) in cuda_nvrtc._expressions(group)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_the_sources(architecture: str) -> None:
    try:
        compiler = Nvrtc()
    except (OSError, RuntimeError) as error:
        pytest.skip(str(error))
    for group in ("pack", cuda_nvrtc._group(torch.int8, "2:4")):
        expressions = cuda_nvrtc._expressions(group)
        binary, names = compiler.compile(expressions, architecture)
        assert binary[:4] == b"\x7fELF" and set(names) == set(expressions)
        for expression, name in names.items():
            assert (tile_of(name) is not None) == ("linear_kernel" in expression)


def test_a_context_is_made_before_kernels_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    @contextmanager
    def device(number: int) -> Iterator[None]:
        done.append(number)
        yield
        done.append("left")

    def load(*given: Any) -> int:
        done.append("loaded")
        return 0

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: done.append(device))
    library = object.__new__(RuntimeLibrary)
    library._loaded = {}
    library.nvrtc = SimpleNamespace(compiled=lambda expressions, device: (b"", {"pack": "name"}))
    library.driver = SimpleNamespace(cuModuleLoadData=load, cuModuleGetFunction=lambda *given: 0)
    found = library._functions("pack", 1)
    assert done == [1, "cuda", "loaded", "left"] and found["pack"].tile is None
    assert library._functions("pack", 1) is found and len(done) == 4


def test_the_sources_lie_beside_the_kernels(checkout_root: Path) -> None:
    link = checkout_root / "sparse_runtime" / "csrc"
    assert os.readlink(link) == "../csrc"
    assert (SOURCES / "cuda/mma_linear/kernel.h").is_file()
    # Whatever the sources include of the standard library, NVRTC is given.
    texts = [path.read_text() for path in SOURCES.glob("cuda/mma_linear/*.h")]
    texts += [(SOURCES / f"cuda/ptx/{name}.h").read_text() for name in ("half", "ptx")]
    used = {name for text in texts for name in re.findall(r"#include <(.+)>", text)}
    assert used <= HEADERS.keys()
