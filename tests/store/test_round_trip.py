"""What is saved comes back: tensors, names, files, bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparse_runtime.store import PackedLinear, PackedModel, load, save, size_report

Make = Callable[..., PackedModel]


def assert_same_model(a: PackedModel, b: PackedModel) -> None:
    assert (a.config, a.aliases, a.provenance) == (b.config, b.aliases, b.provenance)
    assert a.attention == b.attention
    assert a.linears.keys() == b.linears.keys()
    assert a.tensors.keys() == b.tensors.keys()
    for name, linear in a.linears.items():
        other = b.linears[name]
        assert linear.packed.spec == other.packed.spec
        for part, tensor in linear.packed.tensors().items():
            assert torch.equal(tensor, other.packed.tensors()[part])
        assert (linear.bias is None) == (other.bias is None)
        if linear.bias is not None and other.bias is not None:
            assert torch.equal(linear.bias, other.bias)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert torch.equal(tensor, b.tensors[name])


def test_a_model_comes_back(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    save(model, tmp_path / "parents are made" / "model")
    assert_same_model(load(tmp_path / "parents are made" / "model"), model)


def test_saving_again_gives_the_same_bytes(make_model: Make, saved: Path, tmp_path: Path) -> None:
    loaded = load(saved)
    save(loaded, tmp_path / "again")
    model = make_model()
    # Neither the order of the dictionaries nor the layout in memory shows in the files.
    model.linears = dict(reversed(model.linears.items()))
    model.tensors = {n: t.t().contiguous().t() for n, t in reversed(model.tensors.items())}
    save(model, tmp_path / "reordered")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
        assert (tmp_path / "reordered" / name).read_bytes() == (saved / name).read_bytes()


def test_what_older_files_do_not_say_is_read_as_nothing(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["sparse_runtime"]["attention"]
    (saved / "config.json").write_text(json.dumps(config))
    model = load(saved)
    assert model.attention == {}
    save(model, saved, overwrite=True)
    assert "attention" not in json.loads((saved / "config.json").read_text())["sparse_runtime"]


def test_attention_of_a_layer_without_packed_weights_is_not_written(
    make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    model.attention = {"encoder.layer.9": next(iter(model.attention.values()))}
    with pytest.raises(ValueError, match=r"attention 'encoder\.layer\.9': expected the name in"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_may_replace_the_directory_it_is_mapped_from(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = load(saved)
    save(model, saved, overwrite=True)
    assert (saved / "model.safetensors").read_bytes() == before
    assert_same_model(load(saved), model)  # the old tensors are still readable


def test_tensors_stay_mapped_from_the_file(tmp_path: Path) -> None:
    big = torch.ones(4, 2**20)
    save(PackedModel({}, {}, {"big": big}), tmp_path / "model")

    def private_bytes() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])

    before = private_bytes()
    tensor = load(tmp_path / "model").tensors["big"]
    assert private_bytes() - before < big.nbytes // 2
    assert torch.equal(tensor, big)


def test_a_linked_directory_is_replaced_behind_the_link(
    make_model: Make, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(saved)
    save(make_model(1), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load(saved).provenance["seed"] == 1


def test_a_place_where_nothing_can_be_written_is_named(make_model: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "model"
    with pytest.raises(OSError, match="cannot be written: ") as caught:
        save(make_model(), target)
    assert caught.value.filename == str(target)
    for wrong, error in (("", ValueError), (None, TypeError)):
        with pytest.raises(error, match="directory: expected a path, got"):
            save(make_model(), wrong)


def test_the_umask_decides_who_may_read(make_model: Make, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(make_model(), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"model": 0o750, "config.json": 0o640, "model.safetensors": 0o640}


def test_config_json_keeps_the_hugging_face_fields_at_the_top(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "bert"
    section = config["sparse_runtime"]
    assert section["format_version"] == 1
    assert section["layers"]["encoder.layer.0.value"] == {
        "shape": [6, 10],
        "structure": "2:4",
        "values": "int8",
        "scales": "chunk:4",
        "activations": {"scheme": "static", "dtype": "uint8", "scale": 0.125, "zero_point": 17},
    }
    assert section["tied"] == {"cls.decoder.weight": "embeddings.word_embeddings.weight"}
    assert "encoder.layer.0.query.bias" in section["tensors"]


def test_memory_that_tensors_share_is_written_once_for_each_name(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    # Overlapping views of one storage, and a bias that another layer uses too.
    model = PackedModel({}, {}, {"a": whole[:8], "b": whole[4:]})
    save(model, tmp_path / "model")
    assert_same_model(load(tmp_path / "model"), model)


def test_two_layers_may_share_their_packed_weight(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    first = model.linears["encoder.layer.0.query"]
    model.linears["encoder.layer.2.query"] = PackedLinear(first.packed, first.bias)
    save(model, tmp_path / "model")
    assert_same_model(load(tmp_path / "model"), model)


BAD_MODELS: list[tuple[str, Callable[[PackedModel], object], str]] = [
    ("section taken", lambda m: m.config.update(sparse_runtime={}), "key 'sparse_runtime'"),
    ("NaN in config", lambda m: m.config.update(eps=float("nan")), "finite JSON"),
    ("not JSON", lambda m: m.provenance.update(path=Path("x")), "expected JSON"),
    ("key twice", lambda m: m.config.update(id2label={0: "a", "0": "b"}), "expected"),
    ("name with a slash", lambda m: m.tensors.update({"../x": torch.ones(1)}), "name '../x'"),
    ("name of metadata", lambda m: m.tensors.update(__metadata__=torch.ones(1)), "__metadata__"),
    ("empty part", lambda m: m.tensors.update({"a..b": torch.ones(1)}), "name 'a..b'"),
    (
        "a packed layer's dense weight",
        lambda m: m.tensors.update({"encoder.layer.0.query.weight": torch.ones(1)}),
        "'encoder.layer.0.query' is packed",
    ),
    (
        "a packed layer's tensor twice",
        lambda m: m.tensors.update({"encoder.layer.0.query.values": torch.ones(1)}),
        "'encoder.layer.0.query' is packed",
    ),
    (
        "a packed layer's bias beside it",
        lambda m: m.tensors.update({"encoder.layer.0.value.bias": torch.ones(6)}),
        "encoder.layer.0.value.bias: expected it in the packed layer",
    ),
    (
        "tied bias of a packed layer",
        lambda m: m.aliases.update({"encoder.layer.0.value.bias": "embeddings.LayerNorm.weight"}),
        "'encoder.layer.0.value' is packed",
    ),
    ("tied to nothing", lambda m: m.aliases.update(x="y"), "tied x: expected the name of a stored"),
    ("tied in a circle", lambda m: m.aliases.update(x="y", y="x"), "tied x: expected"),
    (
        "tied and stored",
        lambda m: m.aliases.update({"classifier.weight": "embeddings.LayerNorm.weight"}),
        "tied classifier.weight: expected a name that is not stored",
    ),
    (
        "tied but stored twice",
        lambda m: m.tensors.update(head=m.tensors["classifier.weight"]),
        "head: the same memory as classifier.weight",
    ),
    ("complex", lambda m: m.tensors.update(z=torch.ones(1, dtype=torch.complex64)), "z: expected"),
    ("sparse", lambda m: m.tensors.update(z=torch.eye(2).to_sparse()), "z: expected a plain"),
    ("no data", lambda m: m.tensors.update(z=torch.ones(2, device="meta")), "meta device"),
    (
        "bias too short",
        lambda m: setattr(m.linears["encoder.layer.0.query"], "bias", torch.ones(5)),
        r"encoder.layer.0.query.bias: expected floats \[6\]",
    ),
    (
        "bias with NaN",
        lambda m: m.linears["encoder.layer.0.query"].bias[2].fill_(float("nan")),
        "encoder.layer.0.query.bias: expected finite",
    ),
    (
        "damaged weight",
        lambda m: m.linears["encoder.layer.0.query"].packed.scales[0].fill_(0),
        "encoder.layer.0.query.scales: expected finite numbers above 0",
    ),
    ("no such folder", lambda m: setattr(m, "extra_files", Path("missing")), "extra_files"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in BAD_MODELS], ids=[case[0] for case in BAD_MODELS]
)
def test_a_bad_model_is_refused_before_anything_is_written(
    make_model: Make, tmp_path: Path, spoil: Callable[[PackedModel], object], message: str
) -> None:
    model = make_model()
    spoil(model)
    with pytest.raises((ValueError, TypeError), match=message):
        save(model, tmp_path / "parent" / "model")
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_counted_from_the_bytes(make_model: Make, saved: Path) -> None:
    model = load(saved)
    report = size_report(model, saved)
    linears = report.linears
    assert linears.parameters == 7 * 60
    assert linears.fp32 == 4 * 420
    sizes = [linear.packed.size() for linear in model.linears.values()]
    assert linears.values == sum(size.values for size in sizes)
    assert linears.packed == sum(size.total for size in sizes)
    assert report.embeddings.packed == report.embeddings.fp32 == 4 * 70
    # LayerNorm in FP32, a half-precision head of 20, five int64 positions, four biases of six.
    assert report.rest.packed == 40 + 40 + 40 + 4 * 6 * 4
    assert report.rest.fp32 == 40 + 80 + 40 + 4 * 6 * 4
    assert report.model.packed == linears.packed + 280 + report.rest.packed
    assert report.weights_file == (saved / "model.safetensors").stat().st_size
    assert report.directory == sum(path.stat().st_size for path in saved.iterdir())
    assert report.weights_file > report.model.packed  # the header is counted, too


def test_the_size_report_is_json_with_ratios(make_model: Make, saved: Path) -> None:
    model = make_model()
    data = json.loads(json.dumps(size_report(model, saved).to_dict()))
    linears = data["linears"]
    assert linears["packed_ratio"] == linears["fp32_bytes"] / linears["packed_bytes"]
    assert linears["values_ratio"] > linears["packed_ratio"]
    assert data["disk_ratio"] == data["model"]["fp32_bytes"] / data["weights_file_bytes"]
    without = size_report(PackedModel({}, {}, {})).to_dict()
    assert without["linears"]["values_ratio"] is without["disk_ratio"] is None
