"""The files that keep measured times: versions, corruption, and who may use them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_runtime.kernels import cuda_loading, nvrtc
from sparse_runtime.kernels.cuda_library import Library
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary
from sparse_runtime.ops.cuda import timings
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.machine import H100
from sparse_runtime.ops.cuda.problem import DENSITIES, Problem
from sparse_runtime.ops.cuda.timings import (
    Timing,
    Timings,
    cache_file,
    forget,
    load,
    own_timings,
    save,
    shipped_timings,
)

PROBLEM = Problem("bf16", 768, 3072, "block:64x64", 0.1, dynamic=True)
TIMING = Timing(PROBLEM, 512, "triton.dense", (64, 64, 64, 1, 4, 3, 8), 12.5, 9.25)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()


def test_what_is_saved_is_loaded() -> None:
    save(cache_file(H100), H100, [TIMING])
    assert load(cache_file(H100), H100, exact=True) == [TIMING]
    assert own_timings(H100).of(PROBLEM, 512) == {"triton.dense": TIMING}
    assert not own_timings(H100).of(PROBLEM, 64)


def test_each_family_keeps_its_fastest() -> None:
    faster = TIMING._replace(cold=3.0, config=(16, 64, 64, 1, 4, 3, 8))
    library = TIMING._replace(family="cublas", config=(), cold=5.0)
    table = Timings([TIMING, faster, library, TIMING])
    assert table.of(PROBLEM, 512) == {"triton.dense": faster, "cublas": library}
    assert len(table) == 2
    table.replace(PROBLEM, 512, [TIMING])
    assert list(table) == [TIMING]


def test_another_gpu_or_library_or_kernel_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = cache_file(H100)
    save(path, H100, [TIMING])
    other = replace(H100, name="NVIDIA A100-SXM4-80GB", capability=80)
    assert cache_file(other) != path
    assert load(path, other, exact=True) == load(path, other, exact=False) == []
    monkeypatch.setattr(timings, "kernels_digest", lambda: "changed")
    assert cache_file(H100) != path
    assert load(path, H100, exact=True) == []
    assert load(path, H100, exact=False) == [TIMING]  # as tables that are shipped are read


def test_another_cuda_library_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for content in (None, b"one", b"another", b"one"):
        library = None
        if content is not None:
            library = Library.__new__(Library)  # which kernels it holds does not matter
            library.source = str(tmp_path / "library.so")
            Path(library.source).write_bytes(content)
        loaded = cuda_loading.Loaded(library, None)
        monkeypatch.setattr(cuda_loading, "load", lambda loaded=loaded: loaded)
        paths.append(cache_file(H100))
    assert paths[1] == paths[3]
    assert len(set(paths)) == 3


def test_kernels_of_nvrtc_are_known_by_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(version: tuple[int, int] = (12, 9)) -> str:
        library = RuntimeLibrary.__new__(RuntimeLibrary)
        library.nvrtc = nvrtc.Nvrtc.__new__(nvrtc.Nvrtc)
        library.nvrtc.version = version
        return library.identity

    first = identity()
    assert identity() == first != identity((13, 0))
    sources = nvrtc._sources()
    monkeypatch.setattr(nvrtc, "_sources", lambda: sources + b"// changed")
    assert identity() != first


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"version": 1}', "\xff", "[" * 100_000,
        json.dumps({"version": 1, "machine": {}, "timings": []}),
    ],
)  # fmt: skip
def test_a_broken_file_is_not_read(text: str) -> None:
    path = cache_file(H100)
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    assert load(path, H100, exact=True) == []
    assert len(own_timings(H100)) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cold", 0), ("cold", -1.0), ("warm", float("nan")), ("cold", float("inf")),
        ("cold", "fast"), ("config", None), ("config", ["wide"]), ("problem", ["bf16", 768]),
        ("tokens", None),
    ],
)  # fmt: skip
def test_a_file_with_a_strange_entry_is_not_read(field: str, value: object) -> None:
    path = cache_file(H100)
    save(path, H100, [TIMING])
    data = json.loads(path.read_text(encoding="utf-8"))
    data["timings"][0][field] = value
    path.write_text(json.dumps(data), encoding="utf-8")
    assert load(path, H100, exact=True) == []


def test_another_version_of_the_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    save(cache_file(H100), H100, [TIMING])
    monkeypatch.setattr(timings, "VERSION", timings.VERSION + 1)
    assert load(cache_file(H100), H100, exact=True) == []


def test_a_user_without_a_home_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    assert len(own_timings(H100)) == 0


def test_a_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save(cache_file(H100), H100, [TIMING])

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save(cache_file(H100), H100, [])
    assert load(cache_file(H100), H100, exact=True) == [TIMING]
    assert [path.name for path in cache_file(H100).parent.iterdir()] == [cache_file(H100).name]


def test_shipped_tables_can_be_used() -> None:
    # Whatever GPU is here: every table names families, configurations and densities that exist.
    families = {family.name: family for family in FAMILIES}
    for path in timings.SHIPPED.glob("*.json"):
        machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
        own = replace(H100, name=machine["device"], capability=machine["capability"])
        found = load(path, own, exact=False)
        assert found, path.name
        for timing in found:
            family = families[timing.family]
            assert timing.problem.density in DENSITIES
            assert family.rejects(timing.problem) is None
            assert (family.decode(timing.config) is None) == (timing.config == ())
    assert len(shipped_timings(replace(H100, name="none such"))) == 0
