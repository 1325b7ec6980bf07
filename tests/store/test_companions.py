"""Tokenizer and sentence-transformers files travel along; weights, code and pickles do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.store import PackedModel, load, save

Make = Callable[..., PackedModel]

TRAVEL = [
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("bpe.codes", "special_tokens_map.json", "added_tokens.json", "sentencepiece.bpe.model"),
    *("spiece.model", "config_sentence_transformers.json", "sentence_bert_config.json"),
]
STAY = [
    *("README.md", "pytorch_model.bin", "model.safetensors.index.json", "training_args.bin"),
    *("modeling_custom.py", "tf_model.h5", "flax_model.msgpack", "vocab.pkl", "optimizer.pt"),
]
POOLING = {
    "idx": 1,
    "name": "1",
    "path": "1_Pooling",
    "type": "sentence_transformers.models.Pooling",
}
TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory such as a sentence encoder is published in."""
    folder = tmp_path / "source"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in [*TRAVEL, *STAY, "1_Pooling/config.json", "1_Pooling/notes.md"]:
        (folder / name).write_text(f'{{"file": "{name}"}}')
    (folder / "model.safetensors").write_bytes(b"dense weights")
    write_modules(folder, [TRANSFORMER, POOLING])
    return folder


def write_modules(folder: Path, modules: Any) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))


def saved_from(make_model: Make, source: Path, target: Path) -> set[str]:
    model = make_model()
    model.extra_files = source
    save(model, target)
    load(target)
    return {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}


def test_the_right_files_travel_and_travel_on(
    make_model: Make, source: Path, tmp_path: Path
) -> None:
    expected = {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"}
    expected |= set(TRAVEL)
    assert saved_from(make_model, source, tmp_path / "first") == expected
    text = (tmp_path / "first" / "vocab.txt").read_text()
    assert text == (source / "vocab.txt").read_text()
    save(load(tmp_path / "first"), tmp_path / "second")
    second = {
        p.relative_to(tmp_path / "second").as_posix() for p in (tmp_path / "second").rglob("*")
    }
    assert second == expected | {"1_Pooling"}


def test_a_directory_without_such_files_is_fine(make_model: Make, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    found = saved_from(make_model, tmp_path / "bare", tmp_path / "model")
    assert found == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "path",
    ["..", "../secrets", "/etc", "1_Pooling/../../secrets", ".", "./1_Pooling", "a//b", "a\\..\\b"],
)
def test_module_paths_that_lead_out_are_refused(
    make_model: Make, source: Path, tmp_path: Path, path: str
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.json").write_text("secret")
    write_modules(source, [TRANSFORMER, POOLING | {"path": path}])
    with pytest.raises(ValueError, match="expected module paths inside the directory"):
        saved_from(make_model, source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_links_that_lead_out_are_refused(make_model: Make, source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"vocab\.txt is a link that leads out"):
        saved_from(make_model, source, tmp_path / "model")


def test_a_module_folder_that_is_a_link_out_is_refused(
    make_model: Make, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (source / "2_Dense").symlink_to(tmp_path / "elsewhere")
    write_modules(source, [TRANSFORMER, POOLING | {"path": "2_Dense"}])
    with pytest.raises(ValueError, match="2_Dense is a link that leads out"):
        saved_from(make_model, source, tmp_path / "model")


def test_the_links_of_the_hub_cache_are_followed(make_model: Make, tmp_path: Path) -> None:
    # models--x/blobs/<hash> and models--x/snapshots/<commit>/<name> -> ../../blobs/<hash>
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "c"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text("[]")
    (snapshot / "vocab.json").symlink_to(Path("..") / ".." / "blobs" / "abc")
    saved_from(make_model, snapshot, tmp_path / "model")
    copied = tmp_path / "model" / "vocab.json"
    assert copied.read_text() == "[]"
    assert not copied.is_symlink()


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"path": ""}, "expected a list of modules, got dict"),
        (["1_Pooling"], "expected modules with a path"),
        ([{"type": "x"}], "expected modules with a path"),
        ([{"path": 3}], "expected modules with a path"),
        ([TRANSFORMER | {"path": "0_Transformer"}], "expected the transformer's files at the"),
    ],
)
def test_modules_that_make_no_sense_are_refused(
    make_model: Make, source: Path, tmp_path: Path, modules: Any, message: str
) -> None:
    write_modules(source, modules)
    with pytest.raises(ValueError, match=message):
        saved_from(make_model, source, tmp_path / "model")


def test_modules_that_are_not_json_are_refused(
    make_model: Make, source: Path, tmp_path: Path
) -> None:
    (source / "modules.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"modules\.json: expected JSON"):
        saved_from(make_model, source, tmp_path / "model")


def test_a_module_keeps_its_safetensors_and_may_not_keep_a_pickle_alone(
    make_model: Make, source: Path, tmp_path: Path
) -> None:
    dense = source / "2_Dense"
    dense.mkdir()
    (dense / "config.json").write_text("{}")
    (dense / "pytorch_model.bin").write_bytes(b"pickle")
    write_modules(source, [TRANSFORMER, POOLING, POOLING | {"path": "2_Dense"}])
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin keeps a module's weights in a pickle"
    ):
        saved_from(make_model, source, tmp_path / "model")
    (dense / "model.safetensors").write_bytes(b"tensors")
    found = saved_from(make_model, source, tmp_path / "model")
    assert {name for name in found if name.startswith("2_Dense")} == {
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }
