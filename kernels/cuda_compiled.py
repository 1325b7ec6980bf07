"""What nvcc made of the CUDA library, read from the built file; no GPU is needed.

    python -m sparse_runtime.kernels.cuda_compiled docs/kernels/cuda_compiled.md --check

Registers and shared memory decide how many blocks a multiprocessor holds; a spill, or a product
that did not become the tensor-core instruction it was written as, is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .ahead_of_time import RESOURCE_USAGE, SHARED_LIMITS, markdown_cells, markdown_table
from .cuda_library import Library

_BUILT = Path(__file__).parents[1] / "libsparse_runtime_cuda.so"
_ARCHITECTURE = re.compile(r"arch = sm_(\d+)")
_FUNCTION = re.compile(r"Function\s*:?\s*(\w+)")
_PRODUCT = re.compile(r"\b([A-Z]*MMA[A-Z0-9.x]*)\b")
# Tile<type, structure, outputs, tokens, warps of either, stages> as the compiler spells it.
_TILE = re.compile(r"linear_kernelINS0_4TileI(\w+?)LNS0_9StructureE([012])E" + r"Li(\d+)E" * 5)
# linear_kernel<type, whether two of four, Tile<outputs, tokens, ...>>, likewise.
_HOPPER = re.compile(
    r"6hopper13linear_kernelI(a|N7cutlass10bfloat16_tE|N7cutlass6half_tE)Lb([01])E"
    r"NS\w?_4TileILi(\d+)ELi(\d+)E"
)
_STRUCTURES = ("dense", "2to4", "exact")
_TYPES = {"a": "int8", "NS_3ptx4BF16E": "bf16", "NS_3ptx3F16E": "f16"}
_INSTRUCTIONS = {
    ("int8", "dense"): "IMMA.16832.S8.S8",
    ("int8", "2to4"): "IMMA.SP.16864.S8.S8",
    ("bf16", "dense"): "HMMA.16816.F32.BF16",
    ("bf16", "2to4"): "HMMA.SP.16832.F32.BF16",
    ("f16", "dense"): "HMMA.16816.F32",
    ("f16", "2to4"): "HMMA.SP.16832.F32",
    ("int8", "exact"): "IMMA.SP.16864.S8.S8",
    ("bf16", "exact"): "HMMA.SP.16832.F32.BF16",
    ("f16", "exact"): "HMMA.SP.16832.F32",
}
# Behind outputs, tokens and inputs of one: 64x128x32.
_WARPGROUP_INSTRUCTIONS = {
    ("int8", "dense"): ("IGMMA", "32.S8.S8"),
    ("int8", "2to4"): ("IGMMA.SP", "64.S8.S8"),
    ("bf16", "dense"): ("HGMMA", "16.F32.BF16"),
    ("bf16", "2to4"): ("HGMMA.SP", "32.F32.BF16"),
    ("f16", "dense"): ("HGMMA", "16.F32"),
    ("f16", "2to4"): ("HGMMA.SP", "32.F32"),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one capability.

    Attributes:
        kernel: its name in the library.
        capability: 80 for sm_80.
        threads: of a block.
        registers: a thread.
        spills: bytes of stack and local memory a thread; 0 where all is in registers.
        shared: bytes of shared memory a block.
        instruction: of its products.
        count: how many of them its code has.
    """

    kernel: str
    capability: int
    threads: int
    registers: int
    spills: int
    shared: int
    instruction: str
    count: int


@dataclass(frozen=True)
class Tile:
    """What a linear kernel needs of a launch, as csrc/cuda/mma_linear/kernel.h works it out.

    Attributes:
        name: the kernel's, in the library.
        outputs: of a tile.
        tokens: of a tile.
        threads: of a block.
        shared: bytes of shared memory a block, asked for at launch.
    """

    name: str
    outputs: int
    tokens: int
    threads: int
    shared: int


def tool(name: str) -> Path:
    """cuobjdump or nvdisasm, of a CUDA toolkit or of Triton.

    Raises:
        FileNotFoundError: neither is there.
    """
    if found := shutil.which(name):
        return Path(found)
    spec = find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name}: neither on PATH nor in triton; pip install triton")


def read_library(path: Path) -> list[Compiled]:
    """Every linear kernel of a built library, by name and capability."""
    library = Library(path)
    needs = {kernel.name: library.needs(kernel) for kernel in library.kernels}
    usages = {at: RESOURCE_USAGE.search(text) for at, text in _functions(path, "-res-usage")}
    built = []
    for at, code in _functions(path, "-sass"):
        usage, name = usages[at], name_of(at[1])
        if usage is None or name is None:  # packs weights, or quantizes rows
            continue
        registers, stack, local = map(int, usage.groups())
        products = _PRODUCT.findall(code)
        instruction = max(set(products), key=products.count) if products else "none"
        built.append(
            Compiled(
                kernel=name,
                capability=at[0],
                threads=needs[name].threads,
                registers=registers,
                spills=stack + local,
                shared=needs[name].shared_bytes,
                instruction=instruction,
                count=products.count(instruction),
            )
        )
    return sorted(built, key=lambda kernel: (kernel.kernel, kernel.capability))


def _functions(path: Path, what: str) -> Iterator[tuple[tuple[int, str], str]]:
    """Capability and name of each function, and what cuobjdump says of it."""
    cuobjdump, beside = tool("cuobjdump"), tool("nvdisasm").parent
    environment = {**os.environ, "PATH": f"{beside}:{os.environ.get('PATH', '')}"}
    command = [str(cuobjdump), what, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for part in re.split(r"(?=\barch = )", done.stdout)[1:]:
        found = _ARCHITECTURE.match(part)
        if found is None:
            continue
        for body in re.split(r"(?=\bFunction\s*:?\s*_Z)", part)[1:]:
            name = _FUNCTION.match(body)
            assert name is not None  # split before it
            yield (int(found[1]), name[1]), body


def name_of(function: str) -> str | None:
    """A linear kernel's name in the library, of the one that a compiler gave it."""
    if tile := tile_of(function):
        return tile.name
    found = _HOPPER.search(function)
    if found is None:
        return None
    kind = {"a": "int8", "N7cutlass10bfloat16_tE": "bf16"}.get(found[1], "f16")
    return f"hopper.{kind}.{_STRUCTURES[int(found[2])]}.{found[3]}x{found[4]}"


def tile_of(function: str) -> Tile | None:
    """What the name that a compiler gave an mma kernel says of it; None of other functions."""
    found = _TILE.search(function)
    if found is None:
        return None
    kind, structure = _TYPES[found[1]], _STRUCTURES[int(found[2])]
    outputs, tokens, warps_out, warps_tok, stages = map(int, found.groups()[2:])
    size = 1 if kind == "int8" else 2
    slab = 2 * size * 512 if structure == "dense" else size * 512 + 128
    stage = outputs // 16 * slab + tokens * 64 * size
    if structure == "exact":
        stage += outputs // 16 * slab + 128
    return Tile(
        name=f"mma.{kind}.{structure}.{outputs}x{tokens}",
        outputs=outputs,
        tokens=tokens,
        threads=32 * warps_out * warps_tok,
        shared=max(stages * stage, (outputs + 4) * tokens * 4),
    )


def problems(kernel: Compiled) -> Iterator[str]:
    """What is wrong with a kernel, one line each."""
    where = f"{kernel.kernel} (sm_{kernel.capability})"
    if kernel.spills:
        yield f"{where}: spills {kernel.spills} bytes"
    limit = SHARED_LIMITS[kernel.capability]
    if kernel.shared > limit:
        yield f"{where}: takes {kernel.shared} bytes of shared memory, {limit} at most"
    family, kind, structure, tile = kernel.kernel.split(".")
    if family == "mma":
        wanted = _INSTRUCTIONS[kind, structure]
    else:
        name, inputs = _WARPGROUP_INSTRUCTIONS[kind, structure]
        wanted = f"{name}.64x{tile.partition('x')[2]}x{inputs}"
    if kernel.instruction != wanted or not kernel.count:
        yield f"{where}: expected products by {wanted}, got {kernel.instruction}"


def table(built: list[Compiled]) -> str:
    """Markdown, one row a kernel."""
    return markdown_table(Compiled, built)


def read_table(text: str) -> list[Compiled]:
    """What :func:`table` wrote."""
    built = []
    for kernel, *numbers, instruction, count in markdown_cells(Compiled, text):
        capability, threads, registers, spills, shared = map(int, numbers)
        built.append(
            Compiled(
                *(kernel, capability, threads, registers, spills, shared),
                instruction=instruction,
                count=int(count),
            )
        )
    return built


def main() -> int:
    """Read the library; write the table, or compare it with the one that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="the Markdown file, replaced unless --check")
    parser.add_argument("--check", action="store_true", help="compare, and fail where they differ")
    parser.add_argument("--library", type=Path, default=_BUILT)
    options = parser.parse_args()
    built = read_library(options.library)
    wrong = [line for kernel in built for line in problems(kernel)]
    if options.check:
        known = read_table(options.table.read_text(encoding="utf-8"))
        wrong += [f"not in {options.table}: {kernel}" for kernel in built if kernel not in known]
        wrong += [f"no longer made: {kernel}" for kernel in known if kernel not in built]
    else:
        head = ""
        if options.table.exists():
            head = options.table.read_text(encoding="utf-8").split("| kernel |")[0]
        options.table.write_text(head + table(built), encoding="utf-8")
    print(*wrong, sep="\n", file=sys.stderr)
    print(f"{len(built)} kernels read, {len(wrong)} problems")
    return 1 if wrong or not built else 0


if __name__ == "__main__":
    sys.exit(main())
