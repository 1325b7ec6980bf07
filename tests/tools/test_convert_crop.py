"""convert(crop=...): smaller layers, the same outputs."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
)

from sparse_runtime import SparseModel, inspect, store, verify
from sparse_runtime.formats import project
from sparse_runtime.spec import Structure
from sparse_runtime.tools.convert import convert

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LAYER = "bert.encoder.layer."
HEAD = 16  # on a CPU with AMX two heads left are enough for attention in bfloat16, as four are


def rows_of_head(head: int) -> slice:
    return slice(head * HEAD, (head + 1) * HEAD)


def empty_head(state: dict[str, Tensor], layer: int, head: int, what: str = "vo") -> None:
    """Zero a head's projections, all of them, values alone (v) or output columns alone (o)."""
    at, attention = rows_of_head(head), f"{LAYER}{layer}.attention"
    if what == "vo":
        for name in ("query", "key"):
            state[f"{attention}.self.{name}.weight"][at] = 0
            state[f"{attention}.self.{name}.bias"][at] = 0
    if "v" in what:
        state[f"{attention}.self.value.weight"][at] = 0
        state[f"{attention}.self.value.bias"][at] = 0
    if "o" in what:
        state[f"{attention}.output.dense.weight"][:, at] = 0


def empty_neurons(state: dict[str, Tensor], layer: int, at: Any, what: str = "io") -> None:
    """Zero neurons: input weights and bias (i), input weights alone (w), output columns (o)."""
    base = f"{LAYER}{layer}"
    if "i" in what or "w" in what:
        state[f"{base}.intermediate.dense.weight"][at] = 0
    if "i" in what:
        state[f"{base}.intermediate.dense.bias"][at] = 0
    if "o" in what:
        state[f"{base}.output.dense.weight"][:, at] = 0


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write(model: Any, directory: Path, state: dict[str, Tensor]) -> Path:
    model.save_pretrained(directory, state_dict=state)
    return directory


def copied(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 64, (3, 30), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 11:], mask[2, 1:] = 0, 0
    return [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:1, :7]}]


def outputs(directory: Path, backend: str) -> list[Tensor]:
    model = SparseModel.from_pretrained(directory, backend=backend)
    return [model(**batch, output_hidden_states=True).hidden_states[-1] for batch in batches()]


def both(source: Path, tmp_path: Path, **arguments: Any) -> Any:
    """The report of a cropped conversion to "cropped", beside an uncropped one to "whole"."""
    convert(source, tmp_path / "whole", crop="none", **arguments)
    return convert(source, tmp_path / "cropped", **arguments)


def shapes(directory: Path, layer: int) -> dict[str, tuple[int, int]]:
    base = f"{LAYER}{layer}."
    return {
        name.removeprefix(base): linear.packed.spec.shape
        for name, linear in store.load(directory).linears.items()
        if name.startswith(base)
    }


def largest_difference(tmp_path: Path, backend: str) -> float:
    pairs = zip(
        outputs(tmp_path / "whole", backend), outputs(tmp_path / "cropped", backend), strict=True
    )
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("values", ["int8", "int4", "fp32"])
def test_silent_heads_and_neurons_change_no_bit_of_integers(
    values: str, model: Any, tmp_path: Path
) -> None:
    state = copied(model)
    empty_head(state, 0, 1)
    empty_head(state, 0, 3)
    empty_neurons(state, 0, slice(5, 40))
    empty_neurons(state, 1, [3, 46])  # 2 of 48: fewer than one in sixteen stay
    empty_neurons(state, 2, [0, 20, 47])
    source = write(model, tmp_path / "source", state)
    report = both(source, tmp_path, values=values)
    first, third = report.cropped
    assert (first.name, first.heads, first.neurons) == (f"{LAYER}0", (1, 3), 35)
    assert (third.name, third.heads, third.neurons) == (f"{LAYER}2", (), 3)
    assert first.silent and third.silent and not first.folded
    assert shapes(tmp_path / "cropped", 0) == {
        **{f"attention.self.{name}": (32, 64) for name in ("query", "key", "value")},
        "attention.output.dense": (64, 32),
        "intermediate.dense": (13, 64),
        "output.dense": (64, 13),
    }
    assert shapes(tmp_path / "cropped", 1) == shapes(tmp_path / "whole", 1)
    for backend in ("reference", "cpu"):
        difference = largest_difference(tmp_path, backend)
        # Floats are summed in another order; integers have none.
        assert difference == 0 if values != "fp32" else difference < 1e-6


@pytest.mark.parametrize("what", ["v", "o"])
def test_heads_and_neurons_with_one_empty_side(what: str, model: Any, tmp_path: Path) -> None:
    state = copied(model)
    empty_head(state, 1, 2, what)
    empty_neurons(state, 1, slice(0, 20), "i" if what == "v" else "o")
    source = write(model, tmp_path / "source", state)
    report = both(source, tmp_path / "floats", values="fp32")
    (layer,) = report.cropped
    assert (layer.heads, layer.neurons, layer.silent) == ((2,), 20, False)
    for backend in ("reference", "cpu"):
        assert largest_difference(tmp_path / "floats", backend) < 1e-6
    # With int8, a scale no longer counts what nobody reads: no step grows, so that the cropped
    # model is as close to the floats as the whole one, up to chance.
    both(source, tmp_path / "int8")
    exact = outputs(tmp_path / "floats/whole", "reference")
    errors = {
        kind: sum(
            float((a - b).norm())
            for a, b in zip(outputs(tmp_path / "int8" / kind, "reference"), exact, strict=True)
        )
        for kind in ("whole", "cropped")
    }
    assert 0 < errors["cropped"] < 1.2 * errors["whole"]


def test_constants_stay_unless_folding_is_asked_for(model: Any, tmp_path: Path) -> None:
    state = copied(model)
    state[f"{LAYER}0.attention.self.value.weight"][rows_of_head(2)] = 0  # its bias stays
    empty_neurons(state, 1, slice(8, 20), "w")
    source = write(model, tmp_path / "source", state)
    report = both(source, tmp_path, values="fp32")
    assert report.cropped == []
    folded = convert(source, tmp_path / "folded", values="fp32", crop="fold")
    assert [(c.name, c.heads, c.neurons, c.folded) for c in folded.cropped] == [
        (f"{LAYER}0", (2,), 0, 1),
        (f"{LAYER}1", (), 12, 12),
    ]
    for name in ("attention.output", "output"):
        layer = 0 if name.startswith("attention") else 1
        module = f"{LAYER}{layer}.{name}.dense"
        biases = [store.load(tmp_path / d).linears[module].bias for d in ("whole", "folded")]
        assert not torch.equal(*biases)
    (tmp_path / "cropped").rename(tmp_path / "unchanged")
    (tmp_path / "folded").rename(tmp_path / "cropped")
    for backend in ("reference", "cpu"):
        assert largest_difference(tmp_path, backend) < 1e-5


def test_a_layer_keeps_one_head_and_one_neuron(model: Any, tmp_path: Path) -> None:
    state = copied(model)
    for head in range(4):
        empty_head(state, 1, head)
    empty_neurons(state, 1, slice(None))
    report = both(write(model, tmp_path / "source", state), tmp_path)
    assert [(c.heads, c.neurons) for c in report.cropped] == [((1, 2, 3), 47)]
    for backend in ("reference", "cpu"):
        assert largest_difference(tmp_path, backend) == 0


@pytest.mark.parametrize("structure", ["block:4x4", "block:1x8", "2:4"])
def test_patterns_stay_whole(structure: str, model: Any, tmp_path: Path) -> None:
    """Of blocks and groups along the neurons only whole ones go, in both matrices."""
    state = copied(model)
    down = f"{LAYER}0.output.dense.weight"
    form = Structure.parse(structure)
    state[down] = project(state[down], form, 0.5 if form.kind == "block" else None)
    empty_neurons(state, 0, [0, 1, 2, *range(8, 24)])  # three strays, then whole groups
    report = both(write(model, tmp_path / "source", state), tmp_path)
    neurons = {layer.name: layer.neurons for layer in report.cropped}[f"{LAYER}0"]
    assert neurons == 16
    structures = {layer.name: layer.structure for layer in report.layers}
    assert structures[down.removesuffix(".weight")] == structure
    assert largest_difference(tmp_path, "reference") == 0


def test_neurons_go_one_by_one_where_only_their_absence_makes_a_pattern(
    model: Any, tmp_path: Path
) -> None:
    state = copied(model)
    empty_neurons(state, 0, slice(15, 48))  # rows 0 to 14 are dense: no block of 16 is a pattern
    report = both(write(model, tmp_path / "source", state), tmp_path)
    assert report.cropped[0].neurons == 33
    assert largest_difference(tmp_path, "reference") == 0


def test_explicit_structures_and_chunks_of_scales_stay_aligned(model: Any, tmp_path: Path) -> None:
    state = copied(model)
    empty_neurons(state, 0, slice(3, 40))
    source = write(model, tmp_path / "source", state)
    for arguments, neurons in (
        ({"structure": "2:4"}, 36),  # groups 4 to 39
        ({"structure": "block:8x1"}, 32),  # rows of blocks 8 to 39
        ({"scales": "chunk:16"}, 16),  # rows 16 to 31
        ({"structure": "2:4", "scales": "chunk:6"}, 24),  # multiples of 12: rows 12 to 35
        ({"scales": "group:8"}, 32),  # columns 8 to 39 of the reader
        ({"prune": "2:4"}, 36),
        ({"prune": "unstructured@0.5"}, 0),  # half of the whole matrix, not of what is left
    ):
        directory = tmp_path / f"{arguments}"
        report = both(source, directory, **arguments)
        assert sum(layer.neurons for layer in report.cropped) == neurons
        assert largest_difference(directory, "reference") == 0


def test_other_families(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40
    )
    distil = DistilBertModel(config)
    state = copied(distil)
    base = "transformer.layer.1."
    state[f"{base}attention.out_lin.weight"][:, :8] = 0  # the first of 4 heads
    state[f"{base}ffn.lin2.weight"][:, 7:10] = 0
    report = both(write(distil, tmp_path / "distil", state), tmp_path / "d", values="fp32")
    assert [(c.name, c.heads, c.neurons) for c in report.cropped] == [
        ("transformer.layer.1", (0,), 3)
    ]
    assert largest_difference(tmp_path / "d", "cpu") < 1e-6
    # MPNet's heads share a table of biases with a column for each: they all stay.
    mpnet = MPNetModel(MPNetConfig(**SIZES))
    state = copied(mpnet)
    state["encoder.layer.0.attention.attn.o.weight"][:, rows_of_head(0)] = 0
    state["encoder.layer.0.output.dense.weight"][:, :9] = 0
    report = both(write(mpnet, tmp_path / "mpnet", state), tmp_path / "m", values="fp32")
    assert [(c.heads, c.neurons) for c in report.cropped] == [((), 9)]
    assert largest_difference(tmp_path / "m", "cpu") < 1e-6


def test_report_provenance_and_inspection(model: Any, tmp_path: Path) -> None:
    state = copied(model)
    empty_head(state, 0, 1)
    empty_neurons(state, 2, [3, 4, 5], "o")
    source = write(model, tmp_path / "source", state)
    report = convert(source, tmp_path / "out", crop="auto")
    assert report.arguments["crop"] == "auto"
    assert report.to_dict()["cropped"][0]["heads"] == (1,)
    provenance = store.load(tmp_path / "out").provenance
    assert provenance["cropped"] == {
        f"{LAYER}0": {"heads": [1], "neurons": 0},
        f"{LAYER}2": {"heads": [], "neurons": 3},
    }
    with io.StringIO() as text:
        Console(file=text, width=200).print(report)
        assert "1 head and 3 neurons of 2 layers removed (exact)" in text.getvalue()
    rows = {row.name: row for row in inspect(tmp_path / "out").matrices}
    query = rows[f"{LAYER}0.attention.self.query.weight"]
    assert (query.shape, query.heads, query.empty_heads) == ((48, 64), 3, 0)


def test_a_cropped_model_is_verified_against_its_source(model: Any, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    state = copied(model)
    empty_head(state, 0, 0)
    empty_neurons(state, 1, slice(0, 30), "o")
    source = write(model, tmp_path / "source", state)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26))]
    words += [f"##{chr(97 + i)}" for i in range(26)]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(source)
    convert(source, tmp_path / "out", values="fp32")
    report = verify(tmp_path / "out", source, ["a b c", "word"], progress=False)
    assert report.passed and report.output.relative < 1e-5


def test_wrong_choices_are_refused(model: Any, tmp_path: Path) -> None:
    source = write(model, tmp_path / "source", copied(model))
    with pytest.raises(ValueError, match="crop 'all': expected one of 'auto', 'fold', 'none'"):
        convert(source, tmp_path / "out", crop="all")
    with pytest.raises(ValueError, match="crop 'fold': prune counts the zeros of whole matrices"):
        convert(source, tmp_path / "out", crop="fold", prune="unstructured@0.5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"crop": "all"}, "crop 'all': expected one of"),
        ({"crop": "fold"}, "crop 'fold': calibration rounds the layers to integers"),
        ({"crop": "fold", "prune": "block:1x4@0.5"}, "crop 'fold': calibration rounds"),
        # Nothing is rounded here, but a sparsity stands.
        (
            {"crop": "fold", "prune": "unstructured@0.5", "values": "fp32"},
            "crop 'fold': prune counts the zeros",
        ),
    ],
)
def test_choices_are_refused_before_calibration(
    arguments: dict[str, str],
    refusal: str,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def solve(*_: Any, **__: Any) -> None:
        raise AssertionError("solving has begun")

    monkeypatch.setattr(sys.modules[convert.__module__], "solve_checkpoint", solve)
    source = write(model, tmp_path / "source", copied(model))
    with pytest.raises(ValueError, match=refusal):
        convert(source, tmp_path / "out", calibration=["a b"], **arguments)
    # Any other choice is solved.
    with pytest.raises(AssertionError, match="solving has begun"):
        convert(source, tmp_path / "out", calibration=["a b"])
