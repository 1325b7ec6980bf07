"""The table of compiled kernels, and the harness that makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from sparse_runtime.kernels.ahead_of_time import (
    CAPABILITIES,
    SHARED_LIMITS,
    Case,
    Compiled,
    all_cases,
    problems,
    read_table,
    table,
)

GOOD = Compiled("case", 90, "kernel", 128, 0, 1024, wgmma=8, mma=0)


def test_a_table_is_read_as_it_was_written() -> None:
    built = [GOOD, Compiled("other case", 80, "kernel", 64, 16, 0, 0, 4)]
    assert read_table("# A title\n\n" + table(built)) == built


@pytest.mark.parametrize(
    ("compiled", "complaint"),
    [
        (Compiled("case", 90, "kernel", 255, 8, 0, 1, 0), "spills 8 bytes"),
        (Compiled("case", 80, "kernel", 64, 0, SHARED_LIMITS[80] + 1, 0, 1), "shared memory"),
        (Compiled("case", 80, "kernel", 64, 0, 0, 0, 0), "no tensor-core instruction"),
    ],
)
def test_what_is_wrong_with_a_kernel_is_said(compiled: Compiled, complaint: str) -> None:
    case = Case("case", lambda: None, tensor_cores=True)
    found = list(problems(case, [compiled]))
    assert len(found) == 1 and complaint in found[0] and "case" in found[0]
    assert not list(problems(case, [GOOD]))


def test_the_committed_table_holds_every_case_without_spills(checkout_root: Path) -> None:
    known = read_table((checkout_root / "docs/kernels/triton_compiled.md").read_text())
    rows: dict[tuple[str, int], list[Compiled]] = {}
    for kernel in known:
        rows.setdefault((kernel.case, kernel.capability), []).append(kernel)
    wanted = {(case.name, c): case for case in all_cases() for c in case.capabilities}
    assert rows.keys() == wanted.keys(), "run python -m sparse_runtime.kernels.ahead_of_time"
    wrong = [line for at, case in wanted.items() for line in problems(case, rows[at])]
    assert not wrong, wrong


def test_kernels_compile_without_a_gpu(tmp_path: Path, checkout_root: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    case = next(case for case in all_cases() if case.tensor_cores)
    command = [sys.executable, "-m", "sparse_runtime.kernels.ahead_of_time", "-", "--jobs", "1"]
    run = subprocess.run(
        [*command, "--only", case.name],
        capture_output=True,
        text=True,
        env=environment,
        cwd=checkout_root,
    )
    assert run.returncode == 0, run.stderr
    built = read_table(run.stdout)
    assert {kernel.capability for kernel in built} == set(CAPABILITIES)
    assert all(kernel.registers > 0 for kernel in built)
