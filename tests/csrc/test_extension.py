"""The C++ extension as built: what it reports, and that instruction sets do not leak."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime import _C

MISSING = '"the compiler lacks it"'
REPORT = """
#include <cstdio>
#include <exception>
#include "cpu/isa.h"
int main() {
  using namespace sparse_runtime;
  for (const Isa isa : kAllIsas) {
    const IsaStatus s = isa_status(isa);
    std::printf("%s %d %d %s\\n", s.name, s.built, s.available, s.reason.c_str());
  }
  std::printf("%s\\n", isa_status(resolve_isa("auto")).name);
  try {
    resolve_isa("avx2");
  } catch (const std::exception& error) {
    std::printf("%s\\n", error.what());
  }
}
"""


def setup_literal(root: Path, name: str) -> Any:
    """A constant of setup.py, read without running it."""
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns no {name}")


@pytest.fixture(scope="module")
def compiler() -> str:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler: the extension came from a wheel")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def isa_units(root: Path) -> list[Path]:
    names = {"generic", *setup_literal(root, "ISA_FLAGS")}
    return sorted(p for p in (root / "csrc" / "cpu").glob("*/*.cc") if p.stem in names)


def test_reports_agree_with_each_other() -> None:
    statuses = {s["name"]: s for s in _C.isas()}
    info, features = _C.build_info(), _C.cpu_features()
    assert statuses["generic"]["available"]
    assert info["isas"] == [name for name, s in statuses.items() if s["built"]]
    assert info["isas_not_built"] == {n: s["reason"] for n, s in statuses.items() if not s["built"]}
    assert set(info["families"]) == {
        "float_panels",
        "int8_panels",
        "panel_attention",
        "token_ops",
    }
    assert info["cxx_standard"] >= 201703 and info["compiler"].split()[0] in ("gcc", "clang")
    for name, status in statuses.items():
        assert (status["reason"] == "") == status["available"]
        if status["available"]:
            assert features.get(name, True), f"{name} without its CPU feature"
    assert 1 <= _C.max_threads() <= (os.cpu_count() or 1)


def test_cpu_features_agree_with_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("no x86 /proc/cpuinfo on this system")
    flags = set(cpuinfo.read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    assert _C.cpu_features() == {name: name in flags for name in _C.cpu_features()}


def symbols_of(obj: Path) -> list[tuple[str, str]]:
    """(kind, name) of every symbol that an object file defines."""
    lines = run("nm", "-C", "--defined-only", obj).splitlines()
    return [(line.split()[1], " ".join(line.split()[2:])) for line in lines]


def shared_symbols(obj: Path) -> list[str]:
    """Those that the linker merges with others of the same name: weak, unique, common."""
    return [name for kind, name in symbols_of(obj) if kind not in "tTrRdDbB"]


@pytest.mark.parametrize("isa", [s["name"] for s in _C.isas() if s["built"]])
def test_object_of_an_instruction_set_holds_no_code_the_linker_may_share(
    isa: str, compiler: str, checkout_root: Path, tmp_path: Path
) -> None:
    """A weak (inline, template) function compiled with AVX-512 could replace everyone's copy."""
    common = setup_literal(checkout_root, "COMMON_FLAGS")
    flags = setup_literal(checkout_root, "ISA_FLAGS").get(isa, [])
    units = [unit for unit in isa_units(checkout_root) if unit.stem == isa]
    assert units
    for unit in units:
        obj = tmp_path / f"{unit.parent.name}_{isa}.o"
        # -O0 inlines nothing: whatever could be emitted for sharing, is.
        for optimisation in ("-O0", "-O2"):
            include = f"-I{checkout_root / 'csrc'}"
            run(compiler, *common, *flags, optimisation, "-fPIC", include, "-c", unit, "-o", obj)
            assert shared_symbols(obj) == []
            exported = [name for kind, name in symbols_of(obj) if kind.isupper()]
            table = "k" + "".join(part.capitalize() for part in isa.split("_")) + "Kernels"
            assert [name.split("::")[-1] for name in exported] == [table]


def test_shared_code_would_be_found(compiler: str, tmp_path: Path) -> None:
    source, obj = tmp_path / "leak.cc", tmp_path / "leak.o"
    source.write_text("#include <algorithm>\nint f(int a, int b) { return std::min(a, b); }\n")
    run(compiler, "-O0", "-c", source, "-o", obj)
    assert any("std::min" in name for name in shared_symbols(obj))


def test_an_instruction_set_left_out_is_reported_with_its_reason(
    compiler: str, checkout_root: Path, tmp_path: Path
) -> None:
    csrc, program = checkout_root / "csrc", tmp_path / "report"
    (tmp_path / "report.cc").write_text(REPORT)
    isas = setup_literal(checkout_root, "ISA_FLAGS")
    macros = [f"-DSPARSE_RUNTIME_{isa.upper()}_NOT_BUILT={MISSING}" for isa in isas]
    sources = [csrc / "cpu" / "isa.cc", csrc / "core" / "cpu_features.cc", tmp_path / "report.cc"]
    run(compiler, "-std=c++17", *macros, "-I", csrc, *sources, "-o", program)
    lines = run(program).splitlines()
    assert lines[:-1] == [
        "generic 1 1 ",
        *(f"{isa} 0 0 not built: the compiler lacks it" for isa in isas),
        "generic",  # what "auto" takes
    ]
    assert lines[-1].startswith("isa: avx2 cannot run here (not built: the compiler lacks it)")


def test_every_source_of_a_family_is_an_instruction_set_or_baseline(checkout_root: Path) -> None:
    """A misspelt file name would silently be compiled without its flags."""
    for unit in isa_units(checkout_root):
        if unit.stem == "generic":
            continue
        assert "cpu/simd_headers.h" in unit.read_text()
    baseline = set((checkout_root / "csrc").rglob("*.cc")) - set(isa_units(checkout_root))
    assert not [p for p in baseline if "immintrin.h" in p.read_text()]
