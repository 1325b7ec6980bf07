"""Compile the Triton kernels for GPUs that are not there, and read what came out.

    python -m sparse_runtime.kernels.ahead_of_time docs/kernels/triton_compiled.md --check

Each family lists its cases in ``kernels/<family>/cases.py``: ``compile_cases()`` yields
:class:`Case`, which call the family's own launchers on tensors in main memory. Triton is told that
a GPU of the wanted capability is there and made to stop behind the compiler, so what is compiled is
what a GPU would run, specialised alike. The process must not have TRITON_INTERPRET set.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CAPABILITIES = (80, 90)
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a block may have (CUDA C++ Programming Guide, compute capabilities)."""

RESOURCE_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class Case:
    """One call of a launcher whose kernel is to be compiled.

    Attributes:
        name: unique; says what a reader of the table must know: kernel, types, tile, epilogue.
        call: calls the launcher, with tensors in main memory.
        tensor_cores: whether its products must become tensor-core instructions.
        capabilities: where it is to be compiled.
    """

    name: str
    call: Callable[[], object]
    tensor_cores: bool = False
    capabilities: tuple[int, ...] = CAPABILITIES


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel of a case.

    Attributes:
        case: the case's name.
        capability: 80 for sm_80.
        kernel: the kernel's name; a case may launch several.
        registers: a thread.
        spills: bytes of stack and local memory a thread; 0 where all is in registers.
        shared: bytes of shared memory a block.
        wgmma: instructions of Hopper's tensor cores in the PTX.
        mma: ``mma.sync`` instructions in the PTX.
    """

    case: str
    capability: int
    kernel: str
    registers: int
    spills: int
    shared: int
    wgmma: int
    mma: int


@cache
def all_cases() -> list[Case]:
    """The cases of every family, in the families' order.

    Raises:
        ValueError: two cases of one name.
    """
    families = sorted(file.parent.name for file in Path(__file__).parent.glob("*/cases.py"))
    cases: list[Case] = []
    for family in families:
        cases += import_module(f"{__package__}.{family}.cases").compile_cases()
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"compile cases: expected a name for each, got twice: {', '.join(twice)}")
    return cases


def compile_case(case: Case, capability: int) -> list[Compiled]:
    """Compile what a case launches, for one capability. This process then launches nothing more.

    Raises:
        RuntimeError: kernels are interpreted in this process, or the case launched none.
    """
    import triton

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    made: list[Any] = []
    run = triton.runtime.JITFunction.run

    def compile_only(self: Any, *arguments: Any, **options: Any) -> Any:
        made.append(run(self, *arguments, **(options | {"warmup": True})))
        return made[-1]

    triton.runtime.JITFunction.run = compile_only
    triton.runtime.driver.set_active(_absent_gpu(capability))
    try:
        case.call()
    finally:
        triton.runtime.JITFunction.run = run
    if not made:
        raise RuntimeError(f"{case.name}: launched no kernel")
    return [_read(case, capability, kernel) for kernel in made]


def _absent_gpu(capability: int) -> Any:
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", capability, 32)
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: capability,  # compiled kernels are kept by device
        get_current_stream=lambda device=None: 0,
    )


def _read(case: Case, capability: int, kernel: Any) -> Compiled:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(program), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = RESOURCE_USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"{case.name}: no resource usage in cuobjdump's output: {usage[:200]}")
    registers, stack, local = map(int, found.groups())
    ptx = kernel.asm["ptx"]
    return Compiled(
        case=case.name,
        capability=capability,
        kernel=kernel.metadata.name,
        registers=registers,
        spills=stack + local,
        shared=kernel.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        mma=ptx.count("mma.sync"),
    )


def problems(case: Case, built: list[Compiled]) -> Iterator[str]:
    """What is wrong with a compiled case, one line each: spills, shared memory, no tensor cores."""
    for kernel in built:
        where = f"{kernel.case} (sm_{kernel.capability}, {kernel.kernel})"
        if kernel.spills:
            yield f"{where}: spills {kernel.spills} bytes"
        limit = SHARED_LIMITS[kernel.capability]
        if kernel.shared > limit:
            yield f"{where}: takes {kernel.shared} bytes of shared memory, {limit} at most"
    if case.tensor_cores and not any(kernel.wgmma + kernel.mma for kernel in built):
        yield f"{case.name} (sm_{built[0].capability}): no tensor-core instruction"


def markdown_table(kind: type, rows: list[Any]) -> str:
    """A header of a dataclass's fields, and one line for each of its instances."""
    names = [field.name for field in fields(kind)]
    lines = [names, ["---"] * len(names), *map(astuple, rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def markdown_cells(kind: type, text: str) -> Iterator[list[str]]:
    """The rows of :func:`markdown_table`, whose second column are numbers, in a page of text."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == len(fields(kind)) and cells[1].isdigit():
            yield cells


def table(built: list[Compiled]) -> str:
    """Markdown, one row a kernel."""
    return markdown_table(Compiled, built)


def read_table(text: str) -> list[Compiled]:
    """What :func:`table` wrote."""
    built = []
    for case, capability, kernel, *numbers in markdown_cells(Compiled, text):
        built.append(Compiled(case, int(capability), kernel, *map(int, numbers)))
    return built


def _compile_index(at: tuple[int, int]) -> tuple[list[Compiled], list[str]]:
    index, capability = at
    case = all_cases()[index]
    try:
        built = compile_case(case, capability)
    except Exception as error:
        while error.__cause__ is not None:  # the innermost says which line it was
            error = error.__cause__  # type: ignore[assignment]
        return [], [f"{case.name} (sm_{capability}): {type(error).__name__}: {error}"]
    return built, list(problems(case, built))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main() -> int:
    """Compile all cases; write the table, or compare it with the one that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="the Markdown file, replaced unless --check")
    parser.add_argument("--check", action="store_true", help="compare, and fail where they differ")
    parser.add_argument("--only", default="", help="cases whose name contains this; prints them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    work = [
        (i, capability)
        for i, case in enumerate(all_cases())
        for capability in case.capabilities
        if options.only in case.name
    ]
    # A forked process could wait for threads of torch's that it did not inherit.
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=_one_thread) as pool:
        results = list(pool.map(_compile_index, work))
    built = [kernel for kernels, _ in results for kernel in kernels]
    wrong = [line for _, lines in results for line in lines]
    if options.only:
        print(table(built))
    elif options.check:
        known = read_table(options.table.read_text())
        wrong += [f"not in {options.table}: {kernel}" for kernel in built if kernel not in known]
        wrong += [f"no longer made: {kernel}" for kernel in known if kernel not in built]
    else:
        head = options.table.read_text().split("| case |")[0] if options.table.exists() else ""
        options.table.write_text(head + table(built))
    print(*wrong, sep="\n", file=sys.stderr)
    print(f"{len(built)} kernels of {len(work)} cases compiled, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    # By its own name, as the processes that it starts know it.
    sys.exit(import_module(f"{__package__}.ahead_of_time").main())
