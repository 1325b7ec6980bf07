"""convert(): what is packed and what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForTokenClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from sparse_runtime import store
from sparse_runtime.formats import project
from sparse_runtime.spec import ActivationSpec, Structure
from sparse_runtime.tools.convert import convert

DYNAMIC = ActivationSpec("dynamic", "uint8")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
QUERY = "encoder.layer.0.attention.self.query"
KEY = "encoder.layer.0.attention.self.key"
VALUE = "encoder.layer.0.attention.self.value"
UP = "encoder.layer.0.intermediate.dense"
DOWN = "encoder.layer.0.output.dense"

# Structure that is planted in a layer of the fixture, with the prune string that plants it.
PLANTED = {
    QUERY: ("2:4", None),
    KEY: ("unstructured", 0.8),
    VALUE: ("block:8x8", 0.5),
    UP: ("block:4x1", 0.75),
    DOWN: ("block:1x4", 0.75),
}


@pytest.fixture(scope="module")
def planted(model: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT some of whose matrices show structure."""
    directory = tmp_path_factory.mktemp("models") / "planted-bert"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for module, (structure, sparsity) in PLANTED.items():
        weight = state[f"{module}.weight"]
        state[f"{module}.weight"] = project(weight, Structure.parse(structure), sparsity)
    model.save_pretrained(directory, state_dict=state)
    return directory


def weights_of(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def spec_strings(directory: Path) -> dict[str, str]:
    linears = store.load(directory).linears
    return {name: str(linear.packed.spec.structure) for name, linear in linears.items()}


def test_auto_keeps_what_the_zeros_show_and_loses_nothing(planted: Path, tmp_path: Path) -> None:
    report = convert(planted, tmp_path / "out", values="fp32")
    packed, weights = store.load(tmp_path / "out"), weights_of(planted)
    assert len(packed.linears) == len(report.layers) == 12
    for name, linear in packed.linears.items():
        expected = PLANTED.get(name, ("dense",))[0]
        assert str(linear.packed.spec.structure) == expected, name
        assert torch.equal(linear.packed.unpack(), weights[f"{name}.weight"]), name
        assert torch.equal(linear.bias, weights[f"{name}.bias"]), name
    assert report.zeroed == 0
    assert {layer.error for layer in report.layers} == {0.0}


def test_everything_else_is_kept_to_the_last_bit(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out")
    packed, weights = store.load(tmp_path / "out"), weights_of(source)
    in_layers = {f"{name}.{part}" for name in packed.linears for part in ("weight", "bias")}
    assert set(packed.tensors) == set(weights) - in_layers
    assert all(torch.equal(packed.tensors[name], weights[name]) for name in packed.tensors)
    assert {row.name for row in report.kept} == set(packed.tensors)
    kinds = {row.name: row.kind for row in report.kept}
    assert kinds["embeddings.word_embeddings.weight"] == "embedding"
    assert kinds["pooler.dense.weight"] == "head"
    assert kinds["embeddings.LayerNorm.weight"] == "norm"
    assert packed.config == json.loads((source / "config.json").read_text())


def test_the_defaults_are_int8_by_row_with_dynamic_activations(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "out")
    weights = weights_of(source)
    for name, linear in store.load(tmp_path / "out").linears.items():
        spec, weight = linear.packed.spec, weights[f"{name}.weight"]
        assert (spec.values.dtype, spec.values.granularity) == ("int8", "row")
        assert spec.activations == DYNAMIC
        scales = weight.abs().amax(1) / 127
        assert torch.equal(linear.packed.scales, scales)
        error = (linear.packed.dequantize() - weight).abs()
        assert bool((error <= scales.unsqueeze(1) * 0.5001).all()), name


@pytest.mark.parametrize(
    ("arguments", "dtype", "scales", "activations"),
    [
        ({"values": "fp32"}, "fp32", "row", None),
        ({"values": "bf16"}, "bf16", "row", None),
        ({"values": "fp16"}, "fp16", "row", None),
        ({"values": "int8", "scales": "tensor"}, "int8", "tensor", DYNAMIC),
        ({"values": "int8", "scales": "chunk:5"}, "int8", "chunk:5", DYNAMIC),
        ({"values": "int4"}, "int4", "row", DYNAMIC),
        ({"values": "int8", "activations": "none"}, "int8", "row", None),
    ],
)
def test_values_scales_and_activations_are_stored_as_asked(
    arguments: dict[str, str],
    dtype: str,
    scales: str,
    activations: ActivationSpec | None,
    source: Path,
    tmp_path: Path,
) -> None:
    convert(source, tmp_path / "out", **arguments)
    spec = store.load(tmp_path / "out").linears[UP].packed.spec
    assert (spec.values.dtype, spec.values.scales) == (dtype, scales)
    assert spec.activations == activations


@pytest.mark.parametrize(
    ("prune", "density"),
    [("2:4", 0.5), ("unstructured@0.9", 0.1), ("block:8x8@0.5", 0.5)],
)
def test_prune_keeps_the_largest_and_says_what_it_took(
    prune: str, density: float, source: Path, tmp_path: Path
) -> None:
    report = convert(source, tmp_path / "out", prune=prune, values="fp32")
    structure, _, sparsity = prune.partition("@")
    packed, weights = store.load(tmp_path / "out"), weights_of(source)
    for layer in report.layers:
        weight = weights[f"{layer.name}.weight"]
        expected = project(
            weight, Structure.parse(structure), float(sparsity) if sparsity else None
        )
        assert torch.equal(packed.linears[layer.name].packed.unpack(), expected)
        assert layer.structure == structure
        assert layer.density == pytest.approx(density, abs=0.01)
        assert layer.zeroed == int((weight != 0).sum() - (expected != 0).sum()) > 0
        assert layer.error == pytest.approx(float((weight - expected).norm() / weight.norm()))
    assert report.zeroed == sum(layer.zeroed for layer in report.layers)


def test_an_explicit_nm_prunes_only_what_does_not_fit(planted: Path, tmp_path: Path) -> None:
    report = convert(planted, tmp_path / "out", structure="2:4", values="fp32")
    assert set(spec_strings(tmp_path / "out").values()) == {"2:4"}
    zeroed = {layer.name: layer.zeroed for layer in report.layers}
    assert zeroed.pop(QUERY) == 0
    assert all(count > 0 for count in zeroed.values())


@pytest.mark.parametrize("structure", ["dense", "unstructured", "block:3x5"])
def test_structures_that_hold_any_matrix_prune_nothing(
    structure: str, planted: Path, tmp_path: Path
) -> None:
    report = convert(planted, tmp_path / "out", structure=structure, values="fp32")
    assert set(spec_strings(tmp_path / "out").values()) == {structure}
    weights = weights_of(planted)
    for name, linear in store.load(tmp_path / "out").linears.items():
        assert torch.equal(linear.packed.unpack(), weights[f"{name}.weight"])
    assert report.zeroed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_kept_as_it_is(
    dtype: torch.dtype, model: BertModel, tmp_path: Path
) -> None:
    source = tmp_path / "half"
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(source, state_dict=state)
    report = convert(source, tmp_path / "out")
    packed = store.load(tmp_path / "out")
    weight = weights_of(source)[f"{QUERY}.weight"]
    assert weight.dtype == dtype
    linear = packed.linears[QUERY]
    assert torch.equal(linear.packed.scales, weight.float().abs().amax(1) / 127)
    assert linear.bias.dtype == torch.float32
    assert {tensor.dtype for tensor in packed.tensors.values()} == {dtype}
    assert report.layers[0].source_bytes == 2 * 32 * 32


@pytest.mark.parametrize(
    "network",
    [
        RobertaForQuestionAnswering(RobertaConfig(**SIZES)),
        ElectraForTokenClassification(ElectraConfig(**SIZES, embedding_size=16)),
        MPNetModel(MPNetConfig(**SIZES)),
        DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        ),
        # One layer, and sizes that no group or block divides.
        BertModel(BertConfig(**{**SIZES, "num_hidden_layers": 1, "intermediate_size": 7})),
    ],
    ids=lambda network: type(network).__name__,
)
def test_every_architecture_is_packed_whole(network: PreTrainedModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", prune="2:4")
    layers = 1 if isinstance(network, BertModel) else 2
    expected = {
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layer." in name
    }
    assert len(expected) == 6 * layers
    assert {layer.name for layer in report.layers} == expected
    packed = store.load(tmp_path / "out")
    assert set(packed.linears) == expected
    assert packed.linears.keys().isdisjoint(packed.tensors)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    network = BertForMaskedLM(BertConfig(**SIZES))
    source = tmp_path / "source"
    source.mkdir()
    network.config.save_pretrained(source)
    torch.save(network.state_dict(), source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    packed = store.load(tmp_path / "out")
    assert packed.aliases == {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    assert packed.aliases.keys().isdisjoint(packed.tensors)


def test_layers_that_share_a_weight_are_both_packed(model: BertModel, tmp_path: Path) -> None:
    # ALBERT's way in BERT's names: a second layer that is the first one again.
    source = tmp_path / "source"
    source.mkdir()
    model.config.save_pretrained(source)
    state = dict(model.state_dict())
    for part in ("weight", "bias"):
        state[f"encoder.layer.1.output.dense.{part}"] = state[f"{DOWN}.{part}"]
    # And a tensor outside of the stack that shares with one inside.
    state["pooler.dense.bias"] = state[f"{QUERY}.bias"]
    torch.save(state, source / "pytorch_model.bin")
    report = convert(source, tmp_path / "out")
    packed = store.load(tmp_path / "out")
    assert len(report.layers) == len(packed.linears) == 12
    first, second = packed.linears[DOWN], packed.linears["encoder.layer.1.output.dense"]
    assert torch.equal(first.packed.unpack(), second.packed.unpack())
    assert torch.equal(first.bias, second.bias)
    assert torch.equal(packed.tensors["pooler.dense.bias"], state[f"{QUERY}.bias"])
    assert packed.aliases == {}


def test_companions_and_provenance_travel(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", prune="2:4")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert not (tmp_path / "out" / "README.md").exists()
    provenance = store.load(tmp_path / "out").provenance
    assert provenance["source"] == "tiny-bert"
    assert provenance["layout"] == "hugging_face: model.safetensors"
    assert provenance["arguments"]["prune"] == "2:4"
    assert str(source.parent) not in (tmp_path / "out" / "config.json").read_text()


def test_a_hub_id_converts_from_the_cache(source: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--name"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, path in enumerate(p for p in source.iterdir() if p.is_file()):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    cache = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    report = convert("owner/name", tmp_path / "out", revision="main", **cache)
    assert report.source == "owner/name"
    provenance = store.load(tmp_path / "out").provenance
    assert (provenance["source"], provenance["revision"]) == ("owner/name", "main")
    # Files, not links into a cache that may be emptied.
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(source, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_prune_and_the_same_structure_agree(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", prune="block:4x4@0.5", structure="block:4x4")
    assert set(spec_strings(tmp_path / "out").values()) == {"block:4x4"}
