"""How the report of `info()` looks, as plain text and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

    from .information import CudaLibrary, Gpu, Info

# Parts of build_info() that the rows of the instruction sets repeat, with reasons.
_SAID_BELOW = ("isas", "isas_not_built")


def as_text(found: Info) -> str:
    """The report as text, one section a paragraph."""
    paragraphs = []
    for title, rows in _sections(found):
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{width}}  {text}".rstrip() for name, text in rows]
        paragraphs.append("\n".join([title, *lines]))
    return "\n\n".join(paragraphs)


def as_tables(found: Info) -> Group:
    """The report as tables of rich, which wrap long reasons to the terminal's width."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for title, rows in _sections(found):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, text in rows:
            table.add_row(Text(name, style="bold"), Text(text))
        tables.append(table)
    return Group(*tables)


def _sections(found: Info) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows of name and text) for each part of the report."""
    yield (
        "Versions",
        [
            ("sparse_runtime", found.version),
            ("python", found.python),
            *((package.name, package.version or _no(package.reason)) for package in found.packages),
            ("system", found.system),
        ],
    )
    cpu = found.cpu
    yield (
        "CPU",
        [
            ("model", f"{cpu.model} ({cpu.architecture})"),
            ("cores", f"{cpu.usable_cores} usable of {cpu.logical_cores}"),
            ("features", " ".join(cpu.features) or "none known"),
        ],
    )
    extension = found.extension
    rows = [("sparse_runtime._C", "yes" if extension.available else _no(extension.reason))]
    rows += [
        (key, _text(extension.build[key])) for key in extension.build if key not in _SAID_BELOW
    ]
    rows += [
        (f"isa {isa.name}", "yes" if isa.available else _no(isa.reason))
        for isa in extension.instruction_sets
    ]
    yield "C++ kernels", rows
    yield "CUDA kernels", [("hand-written", _library_text(found.cuda_library))]
    gpus = [(gpu.name, _gpu_text(gpu)) for gpu in found.gpus]
    yield "GPUs", gpus or [("none", found.gpu_reason or "")]
    yield "Backends", [(b.name, "yes" if b.available else _no(b.reason)) for b in found.backends]
    if found.kernels:
        yield (
            "Kernels",
            [
                (k.name, f"{k.backend}: {'yes' if k.available else _no(k.reason)}")
                for k in found.kernels
            ],
        )


def _no(reason: str | None) -> str:
    return f"no: {reason}"


def _library_text(library: CudaLibrary) -> str:
    if not library.available:
        return f"{_no(library.reason)}; Triton kernels run in their place"
    hopper = sum(name.startswith("hopper.") for name in library.kernels)
    return (
        f"{len(library.kernels)} kernels, {hopper or 'none'} of them for sm_90a; {library.source}"
    )


def _gpu_text(gpu: Gpu) -> str:
    return f"compute capability {gpu.capability}, {gpu.memory / 2**30:.0f} GiB"


def _text(value: Any) -> str:
    """A build property as one line; nested properties as name=value."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text(item) for item in value)
    return str(value)
