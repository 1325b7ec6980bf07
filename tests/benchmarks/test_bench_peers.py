"""The peers' benchmark with stand-ins for the contenders: their failures, the check, the table."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_runtime.benchmarks import bench_peers, peer_process
from sparse_runtime.benchmarks.bench_peers import ROWS, WORKLOADS, cosine, run_row
from sparse_runtime.benchmarks.peer_process import ENDED, Worker
from sparse_runtime.benchmarks.view_peers import PeerRecord, plot, show

ROW = "unstructured-90 int8"
OURS, REFERENCE, FLOATS = "sparse-runtime:cpu", "sparse-runtime:reference", "transformers:fp32"
PEERS = ROWS[ROW][1]
Plans = dict[str, dict[str, Any]]
SetPlans = Callable[[Plans], None]


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, str]:
    """Files of outputs [1, 2, 3]: right, nearly, wrong, of another size, without a number."""
    right = np.array([[[1, 2, 3], [4, 5, 6]]], np.float32)
    arrays = {
        "right": right,
        "nearly": right + np.float32(0.5),  # cosine 0.998: good enough for a peer in INT8
        "wrong": -right,
        "short": right[:, :1],
        "nan": right * np.nan,
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: str(tmp_path / f"{name}.npy") for name in arrays}


def plans_of(outputs: dict[str, str], changes: Plans | None = None) -> Plans:
    """Ours takes 1 us a token, the peers 2 to 4; changes go by contender."""
    plans: Plans = {
        OURS: {"seconds": 1e-6, "output": outputs["right"], "version": "0.1"},
        "deepsparse:int8": {"seconds": 2e-6, "output": outputs["nearly"]},
        "openvino:int8": {"seconds": 3e-6, "output": outputs["right"]},
        "itrex:int8": {"seconds": 4e-6, "output": outputs["right"]},
        REFERENCE: {"seconds": 1e-3, "output": outputs["right"]},
        FLOATS: {"seconds": 1e-3, "output": outputs["right"]},
    }
    return {name: plan | (changes or {}).get(name, {}) for name, plan in plans.items()}


def run(tmp_path: Path, **options: Any) -> list[PeerRecord]:
    return run_row(tmp_path, "tiny", ROW, threads=2, rounds=3, seconds=1.0, **options)


def test_a_row_has_every_contender_at_every_workload(
    tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    plans = plans_of(outputs)
    set_plans(plans)
    records = run(tmp_path)
    assert [(r.batch, r.seq, r.contender) for r in records] == [
        (*workload, contender) for workload in WORKLOADS for contender in (OURS, *PEERS)
    ]
    for record in records:
        tokens = record.batch * record.seq
        each = plans[record.contender]["seconds"] * 1e3 * tokens
        assert record.p50_ms == pytest.approx(each)
        assert record.min_ms == pytest.approx(each / 2)
        assert record.peak_mb == 7
        assert record.passes == 3 * 20  # a pass is short: the most that a round takes
        assert (record.shape, record.row, record.threads) == ("tiny", ROW, 2)
        checked = (record.batch, record.seq) == WORKLOADS[0]
        assert (record.cosine is not None) == checked
    assert records[0].version == "0.1"
    assert records[0].cosine == pytest.approx(1)
    nearly = next(r for r in records if r.contender == "deepsparse:int8")
    assert 0.99 < (nearly.cosine or 0) < 0.9999


def test_a_slow_contender_makes_two_passes_a_round(
    tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    # OpenVINO takes 128 s for a sequence of 128 tokens; a second is given to each.
    set_plans(plans_of(outputs, {"openvino:int8": {"seconds": 1.0}}))
    passes = {record.contender: record.passes for record in run(tmp_path)}
    assert passes == {OURS: 60, "deepsparse:int8": 60, "openvino:int8": 6, "itrex:int8": 60}


def test_contenders_find_their_forms_of_the_checkpoint(
    tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    plans = plans_of(outputs)
    del plans[OURS]["version"]
    set_plans(plans)
    versions = {record.contender: record.version for record in run(tmp_path)}
    model = tmp_path / "models" / "tiny-sparse-unstructured-90"
    assert versions[OURS] == f"{OURS}/{model / 'int8'}/2/2"
    assert versions[PEERS[0]] == f"{PEERS[0]}/{model}/2/2"


@pytest.mark.parametrize("output", ["wrong", "nan", "short", "nearly"])
def test_a_wrong_output_of_ours_stops_the_run(
    output: str, tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    # What a peer may deviate by (nearly), we may not.
    set_plans(plans_of(outputs, {OURS: {"output": outputs[output]}}))
    with pytest.raises(ValueError, match=f"{ROW}: our output is wrong"):
        run(tmp_path)


def test_nothing_counts_where_the_reference_does_not_run(
    tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    set_plans(plans_of(outputs, {REFERENCE: {"error": "ImportError: torch"}}))
    with pytest.raises(ValueError, match="our output cannot be checked"):
        run(tmp_path)


@pytest.mark.parametrize("output", ["wrong", "nan", "short"])
def test_a_peer_with_a_wrong_output_is_named_and_left_out(
    output: str,
    tmp_path: Path,
    set_plans: SetPlans,
    outputs: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_plans(plans_of(outputs, {"openvino:int8": {"output": outputs[output]}}))
    found = {r.contender for r in run(tmp_path)}
    assert "openvino:int8" not in found and len(found) > 1
    said = capsys.readouterr().err
    assert re.search(rf"{ROW}: openvino:int8: cosine \S+, below 0.9: left out", said)


@pytest.mark.parametrize(
    ("plan", "reason", "workloads"),
    [
        # Orders: 0 the check, 1 a warm-up, 2 to 4 the rounds of the first workload, 5 a warm-up.
        pytest.param({"error": "no licence"}, "does not run: no licence", 0, id="never runs"),
        pytest.param({"exits": True}, f"does not run: {ENDED}", 0, id="ends at once"),
        pytest.param({"dies_at": 0}, ENDED, 0, id="dies at the check"),
        pytest.param({"dies_at": 3}, ENDED, 0, id="dies in a round"),
        pytest.param({"fails_at": 5}, "RuntimeError: out of memory", 3, id="fails a workload"),
        pytest.param({"dies_at": 5}, ENDED, 1, id="dies at the second workload"),
    ],
)
def test_a_peer_that_fails_is_left_out_with_its_reason(
    plan: dict[str, Any],
    reason: str,
    workloads: int,
    tmp_path: Path,
    set_plans: SetPlans,
    outputs: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_plans(plans_of(outputs, {"deepsparse:int8": plan}))
    records = run(tmp_path)
    counts = {name: sum(r.contender == name for r in records) for name in (OURS, *PEERS)}
    assert counts == {OURS: 4, "deepsparse:int8": workloads, "openvino:int8": 4, "itrex:int8": 4}
    assert f"  {ROW}: deepsparse:int8: {reason}\n" in capsys.readouterr().err


def test_a_peer_may_be_left_out_on_demand(
    tmp_path: Path, set_plans: SetPlans, outputs: dict[str, str]
) -> None:
    set_plans(plans_of(outputs))
    found = {record.contender for record in run(tmp_path, without=("deepsparse",))}
    assert found == {OURS, "openvino:int8", "itrex:int8"}


def test_every_process_is_ended_even_after_an_error(
    tmp_path: Path,
    set_plans: SetPlans,
    outputs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Worker] = []

    class Watched(Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(bench_peers, "Worker", Watched)
    set_plans(plans_of(outputs, {OURS: {"output": outputs["wrong"]}}))
    with pytest.raises(ValueError, match="wrong"):
        run(tmp_path)
    assert len(started) == 6
    for worker in started:
        assert worker._process is not None and worker._process.poll() is not None


def test_cosine() -> None:
    a = np.array([[3.0, 4.0]])
    assert cosine(a, 7 * a) == pytest.approx(1)
    assert cosine(a, np.array([[-4.0, 3.0]])) == pytest.approx(0)
    assert math.isnan(cosine(a, a[:, :1]))


def record(
    contender: str, p50_ms: float, batch: int = 1, row: str = ROW, padding: int = 0
) -> PeerRecord:
    tokens = batch * 128 - padding
    return PeerRecord(
        "tiny", row, contender, "1", batch, 128, tokens, 4, p50_ms, p50_ms / 2, 9, 0.0, None
    )


def test_the_table_compares_with_the_fastest_peer_and_averages_ratios(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show(
        [
            record(OURS, 2.0),
            record("deepsparse:int8", 8.0),
            record("openvino:int8", 6.0),  # the fastest here: 3.00x
            record(OURS, 10.0, batch=8),
            record("deepsparse:int8", 7.5, batch=8),  # here it is the other, and faster: 0.75x
            record("openvino:int8", 30.0, batch=8),
            record(OURS, 3.0, batch=64, padding=9),  # real lengths do not count in the mean
            record("openvino:int8", 30.0, batch=64, padding=9),
            record(OURS, 1.0, row="dense int8"),  # without a peer there is nothing to compare
            record("openvino:fp32", 1.0, row="dense fp32"),  # nor without ours
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if "(1, 128)" in line)
    second = next(line for line in lines if "(8, 128)" in line)
    assert [cell.strip() for cell in first.split("│")[1:-1]] == [
        "tiny", ROW, "4", "(1, 128)", "2.00", "openvino:int8 6.00", "3.00x",
    ]  # fmt: skip
    assert "10.00" in second and "deepsparse:int8 7.50" in second and "0.75x" in second
    assert any("64 sentences" in line and "10.00x" in line for line in lines)
    # sqrt(3 * 0.75)
    assert lines[-1].split() == ["tiny", *ROW.split(), "4", "threads:", "1.50x", "(least", "0.75x)"]
    assert "dense" not in "".join(lines)


def test_records_are_appended_as_json_lines(
    tmp_path: Path,
    set_plans: SetPlans,
    outputs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_plans(plans_of(outputs))
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "kept"}\n')
    command = ["bench_peers", "--dir", str(tmp_path), "--shapes", "tiny", "--rows", ROW]
    command += [
        "--threads",
        "2",
        "--rounds",
        "1",
        "--sentences",
        "0",
        "--without",
        "deepsparse",
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", command)
    bench_peers.main()
    kept, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == {"kind": "kept"}
    assert len(lines) == len(WORKLOADS) * 3
    fields = [field.name for field in dataclasses.fields(PeerRecord)]
    for line in lines:
        assert list(line) == ["kind", *fields, "environment"]
        assert line["kind"] == "peer"
    assert lines[0]["contender"] == OURS and lines[0]["cosine"] == pytest.approx(1)
    assert lines[-1]["cosine"] is None
    assert "3.00x (least 3.00x)" in capsys.readouterr().out


def test_stored_records_are_shown_and_plotted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stored = tmp_path / "records.jsonl"
    records = [
        record(OURS, 2.0),
        record("openvino:int8", 6.0),
        record(OURS, 1.0, batch=64, padding=9),
    ]
    lines = [{"kind": "peer", **dataclasses.asdict(r), "environment": {}} for r in records]
    stored.write_text("".join(json.dumps(line) + "\n" for line in [{"kind": "model"}, *lines]))
    picture = tmp_path / "ratios.svg"
    command = ["bench_peers", "--view", str(stored), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    bench_peers.main()
    assert "3.00x" in capsys.readouterr().out
    drawn = picture.read_text()
    assert drawn.count("<path") > 5 and "</svg>" in drawn


def test_nothing_to_compare_is_not_plotted(tmp_path: Path) -> None:
    picture = tmp_path / "ratios.svg"
    with pytest.raises(ValueError, match="records: expected ours and a peer"):
        plot([record(OURS, 1.0)], picture)
    assert not picture.exists()


def test_every_row_names_peers_that_have_an_environment_and_a_limit() -> None:
    for form, peers in ROWS.values():
        assert form in bench_peers.LEAST_COSINE
        for peer in peers:
            name, _, precision = peer.partition(":")
            assert name in peer_process.HOMES
            assert precision.partition("+")[0] in bench_peers.LEAST_COSINE
