"""What is trained is what is written, opened, packed and run: integer by integer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparse_runtime as sr
from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.compress import (
    LinearQuantization,
    Pattern,
    attach_fake_quant,
    attach_masks,
    encoder_linears,
    read_quantization,
    write_checkpoint,
)
from sparse_runtime.ops import LinearWeight, get_backend
from sparse_runtime.spec import ValueSpec
from sparse_runtime.store import load

IDS = torch.arange(12).view(2, 6)
MASK = torch.ones_like(IDS)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, attention_mask=MASK).logits.square().sum().backward()
        optimizer.step()
    model.eval()


def prune(model: nn.Module, pattern: str, names: dict[str, nn.Linear]) -> None:
    parsed = Pattern.parse(pattern)
    attach_masks(names, {n: parsed.mask(li.weight.detach().abs()) for n, li in names.items()})


CASES = {
    # activations, values, scales, pattern, structure that convert finds
    "prune-ofa": ("static", "int8", "tensor", "unstructured@0.85", "unstructured"),
    "rows": ("dynamic", "int8", "row", "2:4", "2:4"),
    "blocks": ("static", "int8", "row", "block:1x4@0.8", "block:1x4"),
    # NxMiFormer: chunks of 16 rows, int4, int8 inputs per token.
    "nxm": ("symmetric", "int4", "chunk:16", "2:4", "2:4"),
    "groups": ("none", "int4", "group:8", "unstructured@0.5", "unstructured"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trained_model_is_exact_from_end_to_end(case: str, make_model, tmp_path: Path) -> None:
    activations, dtype, scales, pattern, structure = CASES[case]
    model = make_model("bert")
    linears = encoder_linears(model)
    prune(model, pattern, linears)
    outputs = [n for n in linears if n.endswith("query")] if case == "prune-ofa" else ()
    values = ValueSpec.parse(dtype, scales)
    attach_fake_quant(linears, weights=values, activations=activations, outputs=outputs)
    train(model)
    written = write_checkpoint(model, None, tmp_path / "written", record={"seed": 3})

    report = sr.inspect(written)
    assert [found.layout for found in report.recognised] == ["stated quantization"]
    rows = {row.name: row for row in report.matrices if row.recommended is not None}
    assert rows.keys() == {f"{name}.weight" for name in linears}
    assert {row.dtype for row in rows.values()} == {dtype}

    sr.convert(written, tmp_path / "packed", progress=False)
    packed, read = load(tmp_path / "packed"), read_quantization(model)
    assert packed.linears.keys() == linears.keys()
    backend = get_backend("reference", "cpu", torch.float32)
    for name, linear in linears.items():
        one, stated = packed.linears[name], read[name]
        integers = stated.integers(name, linear.weight.detach())
        assert torch.equal(one.packed.unpack(), integers)
        assert torch.equal(one.packed.scales, stated.scales)
        assert one.packed.spec.values == values
        assert str(one.packed.spec.structure) == structure
        assert one.packed.spec.activations == stated.activations
        assert one.packed.spec.outputs == stated.outputs
        _assert_same_outputs(backend, name, one, linear)

    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
        found = sr.SparseModel.from_pretrained(tmp_path / "packed", backend="reference")(
            input_ids=IDS, attention_mask=MASK
        ).logits
    # A sum on the edge between two integers may round to the other in a later layer.
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


@torch.no_grad()
def _assert_same_outputs(backend: object, name: str, one: object, linear: nn.Linear) -> None:
    """The reference's linear layer against the fake-quantized module, float rounding apart."""
    prepared = backend.prepare_linear([LinearWeight(name, one.packed, one.bias)])
    x = torch.randn(64, linear.in_features, generator=torch.Generator().manual_seed(1))
    expected, found = linear(x), prepared(x)
    error = (found - expected).abs()
    outputs = one.packed.spec.outputs
    if outputs is None:
        # One float32 sum of at most 48 products on one side, exact sums of integers on the other.
        assert error.max() <= 2e-6 * expected.abs().max()
    else:
        levels = error / outputs.scale
        assert levels.max() < 1.01
        assert (levels > 0.5).float().mean() < 1e-3


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "mpnet", "distilbert"])
def test_transformers_opens_what_is_written(family: str, make_model, tmp_path: Path) -> None:
    model = make_model(family)
    linears = encoder_linears(model)
    prune(model, "2:4", linears)
    attach_fake_quant(linears, weights=ValueSpec("int8"), activations="none")
    keys = set(model.state_dict())
    written = write_checkpoint(model, None, tmp_path / "written")
    assert set(model.state_dict()) == keys  # the model is left as it is
    opened = type(model).from_pretrained(written).eval()
    with torch.no_grad():
        expected, found = (m(input_ids=IDS, attention_mask=MASK)[0] for m in (model, opened))
    assert torch.equal(found, expected)
    assert open_checkpoint(written).linears.keys() == linears.keys()


def test_tied_weights_of_a_masked_language_model_stay_tied(make_model, tmp_path: Path) -> None:
    model = make_model("bert_mlm")
    prune(model, "unstructured@0.75", encoder_linears(model))
    written = write_checkpoint(model, None, tmp_path / "written")
    assert "cls.predictions.decoder.weight" not in open_checkpoint(written).tensors
    opened = type(model).from_pretrained(written).eval()
    with torch.no_grad():
        expected, found = (m(input_ids=IDS, attention_mask=MASK)[0] for m in (model, opened))
    assert torch.equal(found, expected)


def test_a_pruned_float_model_is_plain(make_model, tmp_path: Path) -> None:
    model = make_model("bert")
    linears = encoder_linears(model, pooler=True)
    prune(model, "unstructured@0.75", linears)
    written = write_checkpoint(model, None, tmp_path / "written")
    checkpoint = open_checkpoint(written)
    assert checkpoint.is_plain
    for name in linears:
        assert (checkpoint.tensors[f"{name}.weight"] == 0).float().mean() == 0.75
    assert not (written / "quantization.safetensors").exists()


def test_the_record_says_how_without_paths(make_model, tmp_path: Path) -> None:
    model = make_model("bert")
    prune(model, "2:4", encoder_linears(model))
    model.config._name_or_path = str(tmp_path / "secret")
    record = {"recipe": "x", "arguments": {"data": [tmp_path / "t.csv", str(tmp_path / "u.csv")]}}
    written = write_checkpoint(model, None, tmp_path / "written", record=record)
    text = (written / "compression.json").read_text()
    said = json.loads(text)
    assert said["arguments"] == {"data": ["t.csv", "u.csv"]}
    assert said["versions"].keys() == {"sparse_runtime", "torch", "transformers"}
    assert len(said["layers"]) == 12
    query = said["layers"]["bert.encoder.layer.0.attention.self.query"]
    assert query == {"sparsity": 0.5, "structure": "2:4", "quantization": None}
    assert all(str(tmp_path) not in path.read_text() for path in written.glob("*.json"))


def test_solvers_state_their_own_scales(make_model, tmp_path: Path) -> None:
    model = make_model("bert")
    name, linear = next(iter(encoder_linears(model).items()))
    scales, values = torch.full((32,), 0.25), ValueSpec("int4")
    q = torch.randint(-7, 8, (32, 32))
    with torch.no_grad():
        linear.weight.copy_(q * 0.25)
    stated = {name: LinearQuantization(values, scales)}
    written = write_checkpoint(model, None, tmp_path / "written", quantization=stated)
    found = open_checkpoint(written).linears[name].load()
    assert torch.equal(found.weight, q.to(torch.int8))
    with torch.no_grad():
        linear.weight[3, 5] += 0.1
    with pytest.raises(ValueError, match=rf"{name}\.weight: expected int4 integers .* at \[3, 5\]"):
        write_checkpoint(model, None, tmp_path / "again", quantization=stated)
    assert not list(tmp_path.glob("*again*"))  # nothing half-written


def test_a_statement_is_written_in_one_order(make_model, tmp_path: Path) -> None:
    model = make_model("bert")
    attach_fake_quant(encoder_linears(model), weights=ValueSpec("int8"), activations="dynamic")
    first, second = (
        (write_checkpoint(model, None, tmp_path / name) / "quantization.safetensors").read_bytes()
        for name in ("first", "second")
    )
    assert first == second
    end = 8 + int.from_bytes(first[:8], "little")
    header = json.loads(first[8:end])
    assert end % 8 == 0 and len(header["__metadata__"]) == 12 + 2
    for keys in (header, header["__metadata__"]):
        assert list(keys) == sorted(keys)


@pytest.mark.parametrize(
    ("scales", "name", "match"),
    [
        (torch.ones(3), None, r"expected 32 float32 scales above 0, got torch.float32 \[3\]"),
        (torch.zeros(32), None, "scales above 0, .* from 0"),
        (torch.ones(32).double(), None, "expected 32 float32 scales above 0, got torch.float64"),
        (torch.ones(32), "bert.encoder.layer.7", r"bert\.encoder\.layer\.7 is no layer"),
    ],
)
def test_wrong_statements_are_refused(
    scales: Tensor, name: str | None, match: str, make_model, tmp_path: Path
) -> None:
    model = make_model("bert")
    module = name or next(iter(encoder_linears(model)))
    stated = {module: LinearQuantization(ValueSpec("int8"), scales)}
    with pytest.raises(ValueError, match=match):
        write_checkpoint(model, None, tmp_path / "written", quantization=stated)


def test_a_directory_with_files_stays(make_model, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or an empty directory"):
        write_checkpoint(make_model("bert"), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_files_of_sentence_transformers_travel_along(make_model, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "args.bin").write_bytes(b"x")
    written = write_checkpoint(make_model("mpnet"), None, tmp_path / "out", extra_files=source)
    assert (written / "1_Pooling" / "config.json").is_file()
    assert (written / "modules.json").is_file()
    assert not (written / "args.bin").exists()
