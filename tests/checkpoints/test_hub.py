"""Hub ids: what is asked of huggingface_hub, and what its errors become."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Stands in for snapshot_download: copies matching files of a directory to a snapshot."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        self.repository, self.snapshot = repository, snapshot
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, repo_id: str, **arguments: Any) -> str:
        self.calls.append((repo_id, arguments))
        self.snapshot.mkdir(exist_ok=True)
        for path in self.repository.rglob("*"):
            name = path.relative_to(self.repository).as_posix()
            if any(fnmatch(name, pattern) for pattern in arguments["allow_patterns"]):
                (self.snapshot / name).parent.mkdir(exist_ok=True)
                shutil.copy(path, self.snapshot / name)
        return str(self.snapshot)


@pytest.fixture
def hub(
    write: Callable[..., Path],
    untied: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], FakeHub]:
    def serve(layout: str) -> FakeHub:
        repository = write(untied, layout)
        for name in ("tokenizer.json", "README.md", "model.onnx", "training_args.bin", "run.py"):
            (repository / name).write_text("{}")
        fake = FakeHub(repository, tmp_path / "snapshot")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return serve


def test_arguments_reach_the_hub(hub: Callable[[str], FakeHub], tmp_path: Path) -> None:
    fake = hub("safetensors")
    checkpoint = open_checkpoint(
        "owner/name", revision="v1", token="secret", cache_dir=tmp_path, local_files_only=True
    )
    ((repo_id, arguments),) = fake.calls
    assert repo_id == "owner/name"
    assert arguments["revision"] == "v1"
    assert arguments["token"] == "secret"
    assert arguments["cache_dir"] == tmp_path
    assert arguments["local_files_only"] is True
    assert checkpoint.layout == "hugging_face: model.safetensors"


@pytest.mark.parametrize("layout", ["safetensors", "safetensors_shards", "torch", "torch_shards"])
def test_only_needed_files_are_asked_for(
    layout: str, hub: Callable[[str], FakeHub], untied: dict[str, Tensor]
) -> None:
    fake = hub(layout)
    checkpoint = open_checkpoint("name")
    assert set(checkpoint.tensors) == set(untied)
    # Pickles are asked for only where the first answer held no safetensors.
    assert len(fake.calls) == (1 if "safetensors" in layout else 2)
    fetched = {path.name for path in fake.snapshot.iterdir()}
    assert {"config.json", "tokenizer.json"} <= fetched
    assert not {"README.md", "model.onnx", "training_args.bin", "run.py"} & fetched


@pytest.mark.parametrize("named", [None, "onnx/model_quantized.onnx"])
def test_graphs_are_asked_for_by_name_or_where_there_is_nothing_else(
    named: str | None, hub: Callable[[str], FakeHub]
) -> None:
    fake = hub("torch")
    (fake.repository / "onnx").mkdir()
    for name in ("onnx/model_quantized.onnx", "onnx/model.onnx", "model.onnx_data"):
        (fake.repository / name).write_text("{}")
    if named is None:
        (fake.repository / "pytorch_model.bin").unlink()
    finalise = None if named is None else {"file": named}
    with pytest.raises(CheckpointError, match="ONNX"):
        open_checkpoint("name", finalise=finalise)
    fetched = {p.relative_to(fake.snapshot).as_posix() for p in fake.snapshot.rglob("*.*")}
    expected = {"model.onnx", "model.onnx_data"} if named is None else {named}
    assert fetched == {"config.json", "tokenizer.json", *expected}


def test_a_cached_snapshot_opens_without_the_network(
    write: Callable[..., Path], untied: dict[str, Tensor], tmp_path: Path
) -> None:
    written = write(untied)
    cache = tmp_path / "cache"
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    # The cache keeps contents under blobs/ and links them into the snapshot.
    for number, path in enumerate(written.iterdir()):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    checkpoint = open_checkpoint("owner/name", cache_dir=cache, local_files_only=True)
    assert checkpoint.directory == snapshot
    assert set(checkpoint.tensors) == set(untied)
    with pytest.raises(CheckpointError, match="owner/other: neither a local directory nor in the"):
        open_checkpoint("owner/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(CheckpointError, match="owner/name: "):
        open_checkpoint("owner/name", revision="v9", cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize(
    "source",
    [
        "./models/bert",
        "../bert",
        "/models/bert",
        "~/no/such/bert",
        "a/b/c",
        "models/",
        "C:\\models\\bert",
        "name with spaces",
        Path("owner/name"),
    ],
)
def test_paths_are_never_asked_of_the_hub(
    source: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    with pytest.raises(CheckpointError, match="no such directory"):
        open_checkpoint(source)


def test_a_directory_wins_over_a_hub_id(
    write: Callable[..., Path],
    untied: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(untied).rename(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    assert set(open_checkpoint("bert-base-uncased").tensors) == set(untied)


# The part of an HTTP answer that the hub's errors read, whichever HTTP library it uses.
RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "check the spelling"),
        (errors.GatedRepoError("403", response=RESPONSE), "access is restricted"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "has no revision 'v1'"),
        (errors.LocalEntryNotFoundError("offline"), "nor in the local cache"),
        (errors.HFValidationError("bad"), "not a hub id"),
        (ConnectionError("no route\nto host"), r"could not be read \(ConnectionError: no route\)"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_errors_of_the_hub_become_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=f"^owner/name: .*{said}") as caught:
        open_checkpoint("owner/name", revision="v1")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_named_file_is_fetched_instead_of_the_usual_weights(
    hub: Callable[[str], FakeHub], tmp_path: Path
) -> None:
    fake = hub("torch")
    (fake.repository / "pytorch_model.bin").rename(fake.repository / "raw[1].bin")
    checkpoint = open_checkpoint("owner/name", finalise={"file": "raw[1].bin"})
    assert checkpoint.layout == "raw[1].bin"
    assert len(fake.calls) == 1
    fetched = {path.name for path in fake.snapshot.iterdir()}
    assert fetched == {"config.json", "tokenizer.json", "raw[1].bin"}


def test_masks_beside_a_checkpoint_are_fetched_with_it(hub: Callable[[str], FakeHub]) -> None:
    fake = hub("torch")
    for name in ("head_mask.pt", "neuron_mask.pt"):
        (fake.repository / name).write_bytes(b"")
    # They are there, so they are read: empty files are refused by name.
    with pytest.raises(
        CheckpointError, match=r"head_mask\.pt: expected a whole file of torch\.save"
    ):
        open_checkpoint("owner/name")
