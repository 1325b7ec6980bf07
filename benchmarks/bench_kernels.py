"""Times every kernel that can run a linear layer, on the layers of real encoders.

    python benchmarks/bench_kernels.py --shape minilm --tokens 128 --structure 2:4 --values int8

docs/benchmarks.md says what is measured and what each column means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from sparse_runtime.benchmarks.contenders import Contender, check_outputs, contenders
from sparse_runtime.benchmarks.encoder_shapes import load_shape
from sparse_runtime.benchmarks.kernel_records import KernelCase, KernelRecord, KernelRun
from sparse_runtime.benchmarks.records import environment, publish, write_jsonl
from sparse_runtime.benchmarks.roofline import Roofline, measure_roofline
from sparse_runtime.benchmarks.threads import torch_threads
from sparse_runtime.benchmarks.view_kernels import plot, render
from sparse_runtime.formats import PackedWeight
from sparse_runtime.spec import Structure
from sparse_runtime.testing import make_activations, make_packed, measure_interleaved

__all__ = ["KernelCase", "KernelRecord", "plot", "render", "run_kernels", "write_jsonl"]

SHAPES = ("minilm",)
TOKENS = (1, 16, 128, 1024)
STRUCTURES = ("dense", "2:4", "unstructured", "block:4x1")
SPARSITIES = (0.9,)
VALUES = ("int8",)


def run_kernels(
    shapes: Sequence[str] = SHAPES,
    *,
    layers: Sequence[str] | None = None,
    tokens: Sequence[int] = TOKENS,
    structures: Sequence[str] = STRUCTURES,
    sparsities: Sequence[float] = SPARSITIES,
    values: Sequence[str] = VALUES,
    threads: Sequence[int | None] = (None,),
    min_seconds: float = 0.2,
    min_rounds: int = 5,
    reference: bool = False,
    roofline: Roofline | None = None,
    progress: bool | None = None,
) -> list[KernelRecord]:
    """Verify and time every candidate and dense baseline on every combination of the arguments.

    Args:
        shapes: names of encoder shapes.
        layers: names of their linears, or None for all.
        tokens: rows of the input.
        structures: structure strings; dense and N:M do not combine with ``sparsities``.
        sparsities: part of the weights or blocks that is zero.
        values: value strings; integers quantize their input per token.
        threads: thread counts; None is PyTorch's present number.
        min_seconds: counted time per contender and case, on average.
        min_rounds: rounds per case at least.
        reference: time the slow reference too.
        roofline: ceilings measured before; None measures them for each thread count.
        progress: show a bar; None shows it when the error stream is a terminal.

    Returns:
        One record for each contender and case, losing ones included.

    Raises:
        ValueError: an unknown name, or a value out of range.
        WrongOutputError: a contender's output is wrong; nothing of its case is timed.
    """
    cases = list(_cases(shapes, layers, tokens, structures, sparsities, values))
    surroundings = environment()
    records: list[KernelRecord] = []
    with tqdm(
        total=len(cases) * len(threads), disable=None if progress is None else not progress
    ) as bar:
        for wanted in threads:
            with torch_threads(wanted) as count:
                ceilings = roofline or measure_roofline()
                for case in cases:
                    bar.set_description(str(case))
                    group, packed, errors = _prepare(case, reference)
                    timings = measure_interleaved(
                        {contender.name: contender.run for contender in group},
                        min_rounds=min_rounds,
                        min_seconds=min_seconds,
                    )
                    run = KernelRun(case, packed, timings, errors, ceilings, count, surroundings)
                    records += [run.record(contender, group) for contender in group]
                    bar.update()
    return records


def _cases(
    shapes: Sequence[str],
    layers: Sequence[str] | None,
    tokens: Sequence[int],
    structures: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[str],
) -> Iterator[KernelCase]:
    """Tokens innermost, so that one packed weight serves them all."""
    if min(tokens, default=0) < 1:
        raise ValueError(f"tokens {list(tokens)}: expected numbers from 1")
    for name in shapes:
        linears = load_shape(name).linears
        for layer in linears if layers is None else layers:
            if layer not in linears:
                raise ValueError(f"layer {layer!r}: {name} has {', '.join(linears)}")
            rows, cols = linears[layer]
            for structure in structures:
                free = Structure.parse(structure).kind in ("unstructured", "block")
                for sparsity in sparsities if free else (None,):
                    for value in values:
                        for count in tokens:
                            yield KernelCase(
                                name, layer, rows, cols, count, structure, sparsity, value
                            )


@lru_cache(maxsize=1)
def _packed(
    shape: tuple[int, int], structure: str, sparsity: float | None, values: str
) -> PackedWeight:
    return make_packed(shape, structure, sparsity, values=values)


def _prepare(
    case: KernelCase, reference: bool
) -> tuple[list[Contender], PackedWeight, dict[str, float]]:
    packed = _packed(
        (case.out_features, case.in_features), case.structure, case.sparsity, case.values
    )
    x = make_activations(case.tokens, case.in_features)
    bias = make_activations(1, case.out_features, seed=1)[0]
    group = contenders(packed, bias, x, reference=reference)
    return group, packed, check_outputs(group, packed, bias, x, str(case))


def _listed(defaults: Sequence[object]) -> str:
    return ", ".join(map(str, defaults))


def main(
    shape: Annotated[
        list[str],
        typer.Option(
            help="Encoder shape.", default_factory=lambda: [*SHAPES], show_default=_listed(SHAPES)
        ),
    ],
    tokens: Annotated[
        list[int],
        typer.Option(
            help="Rows of the input.",
            default_factory=lambda: [*TOKENS],
            show_default=_listed(TOKENS),
        ),
    ],
    structure: Annotated[
        list[str],
        typer.Option(
            help="Structure.",
            default_factory=lambda: [*STRUCTURES],
            show_default=_listed(STRUCTURES),
        ),
    ],
    sparsity: Annotated[
        list[float],
        typer.Option(
            help="Part of the weights or blocks that is zero; not for dense and N:M.",
            default_factory=lambda: [*SPARSITIES],
            show_default=_listed(SPARSITIES),
        ),
    ],
    values: Annotated[
        list[str],
        typer.Option(
            help="Value type.", default_factory=lambda: [*VALUES], show_default=_listed(VALUES)
        ),
    ],
    layer: Annotated[list[str] | None, typer.Option(help="Linear; all without it.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Number of threads.")] = None,
    min_seconds: Annotated[float, typer.Option(help="Counted time per contender.")] = 0.2,
    reference: Annotated[bool, typer.Option(help="Time the slow reference too.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append JSON lines to this file.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Write a PNG plot.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Time every kernel on the layers of real encoders; every list option can be repeated."""
    records = run_kernels(
        shape,
        layers=layer or None,
        tokens=tokens,
        structures=structure,
        sparsities=sparsity,
        values=values,
        threads=threads or (None,),
        min_seconds=min_seconds,
        reference=reference,
    )
    publish(records, render, plot, output=output, plot_to=plot_to, json_lines=json_lines)


if __name__ == "__main__":
    typer.run(main)
