"""A crash, an error or another writer at any step leaves a whole model or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_runtime.store import FormatError, PackedModel, load, save, writing
from sparse_runtime.store.directories import identity

Make = Callable[..., PackedModel]

STEPS: list[tuple[Any, str]] = [
    (os, "mkdir"),
    (os, "rename"),
    (os, "fsync"),
    (shutil, "copyfile"),
    (Path, "write_bytes"),
    (writing, "save_file"),
]


class Crash(BaseException):
    """The machine stops: no handler of errors may be counted on."""


def fail_at(
    patch: pytest.MonkeyPatch, step: int, error: BaseException, *, for_good: bool
) -> list[str]:
    """Let the step-th call that touches the disk raise; ``for_good``, every later one as well.

    Returns:
        The names of the calls, filled as they are made.
    """
    calls: list[str] = []

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(function.__name__)
            if len(calls) - 1 == step or (for_good and len(calls) - 1 > step):
                raise error
            return function(*args, **kwargs)

        return call

    # After a crash nothing is tidied up either; after an error it is.
    for owner, name in [*STEPS, *([(shutil, "rmtree")] if for_good else [])]:
        patch.setattr(owner, name, guarded(getattr(owner, name)))
    return calls


def interrupted_saves(
    model: PackedModel, target: Path, restore: Callable[[], None], error: BaseException
) -> Iterator[int]:
    """Save again and again, failing one step later each time, until no step is left to fail."""
    for step in range(1000):
        restore()
        with pytest.MonkeyPatch.context() as patch:
            calls = fail_at(patch, step, error, for_good=isinstance(error, Crash))
            with contextlib.suppress(Crash, OSError):
                save(model, target, overwrite=True)
            if len(calls) <= step:
                return
        yield step
    raise AssertionError("no save went through")


@pytest.fixture
def companions(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [Crash(), OSError("no space left")])
def test_an_interrupted_save_leaves_the_old_model_the_new_one_or_none(
    make_model: Make, tmp_path: Path, companions: Path, old: bool, error: BaseException
) -> None:
    target, new = tmp_path / "place" / "model", make_model(1)
    new.extra_files = companions
    save(make_model(0), tmp_path / "old")

    def restore() -> None:
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        if old:
            shutil.copytree(tmp_path / "old", target)

    seen = set()
    steps = 0
    for _ in interrupted_saves(new, target, restore, error):
        steps += 1
        found = load(target).provenance["seed"] if target.exists() else None
        seen.add(found)
        if isinstance(error, OSError):
            assert [p.name for p in target.parent.iterdir()] == (
                ["model"] if target.exists() else []
            )
            assert found is not None or not old
        elif found == 1:
            assert (target / "tokenizer.json").exists()
    assert steps >= 8
    # A crash between the two renames, and only there, leaves no model under the name.
    expected = {0} if old else {None}
    assert seen - {1} == (expected | {None} if isinstance(error, Crash) else expected)


def test_a_crash_before_the_last_file_leaves_nothing_that_loads(
    make_model: Make, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        patch.setattr(Path, "write_bytes", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            save(make_model(), tmp_path / "model")
    (left,) = tmp_path.iterdir()
    with pytest.raises(FormatError, match=r"config\.json: expected a packed model's configuration"):
        load(left)


def test_files_reach_the_disk_before_the_name_does(
    make_model: Make, tmp_path: Path, companions: Path
) -> None:
    model, target = make_model(), tmp_path / "model"
    model.extra_files = companions
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "rename", recorded_rename)
        save(model, target)
    *files, staging, renamed, parent = events
    assert sorted(files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert staging.endswith(".partial")
    assert (renamed, parent) == ("rename", tmp_path.name)


def test_only_an_empty_directory_or_a_packed_model_is_replaced(
    make_model: Make, saved: Path, tmp_path: Path
) -> None:
    model = make_model(1)
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    assert load(tmp_path / "empty").provenance["seed"] == 1

    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(model, saved)
    assert load(saved).provenance["seed"] == 0

    other = tmp_path / "photos"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileExistsError, match="only a packed model is ever overwritten"):
        save(model, other, overwrite=True)
    assert [path.name for path in other.iterdir()] == ["config.json"]

    (tmp_path / "file").write_text("text")
    with pytest.raises(FileExistsError, match="expected a directory or nothing, got a file"):
        save(model, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "text"


def run_together(jobs: list[Callable[[], None]]) -> list[BaseException]:
    """Run in threads; returns what they raised."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_of_writers_that_do_not_overwrite_one_wins(make_model: Make, tmp_path: Path) -> None:
    models = [make_model(seed) for seed in range(4)]
    errors = run_together([lambda m=m: save(m, tmp_path / "model") for m in models])
    assert [type(error) for error in errors] == [FileExistsError] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load(tmp_path / "model")


def test_a_directory_that_takes_the_inode_of_a_removed_one_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    os.utime(folder, ns=(0, 1))
    before = identity(folder)
    os.utime(folder, ns=(0, 2))  # the same inode, made at another time
    assert identity(folder) != before
    assert identity(tmp_path / "nowhere") is None


def marked(seed: int) -> PackedModel:
    """Configuration and weights that both say which model they belong to."""
    return PackedModel({}, {}, {"mark": torch.full((3,), float(seed))}, {}, {"seed": seed})


def test_writers_and_readers_never_see_a_mixture(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(marked(0), target)
    finished: list[int] = []
    reads: list[bool] = []

    def write(seed: int) -> None:
        try:
            for round_ in range(20):
                save(marked(20 * seed + round_), target, overwrite=True)
        finally:
            finished.append(seed)

    def read() -> None:
        while len(finished) < 3 or not reads:
            try:
                model = load(target)
            except FormatError:
                continue  # between two models, and said so
            reads.append(model.provenance["seed"] == model.tensors["mark"][0].item())

    errors = run_together([read, *(lambda s=s: write(s) for s in range(3))])
    assert errors == []
    assert all(reads)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load(target)
