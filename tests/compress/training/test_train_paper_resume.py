"""A training that is cut off anywhere ends with its paper's files as if it had not been."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.compress.training import paper_files, run
from sparse_runtime.compress.training.report import TrainReport
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.workspace import Workspace

SHORT = ["*.steps=4", "*.batch_size=15", "prune.pruning.structure=unstructured@0.75"]


class Gone(Exception):
    """Stands for a machine that goes away."""


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def finish_of_the_last(workspace: Workspace, stage: str, result: Any) -> None:
    if stage == "prune":
        raise Gone
    FINISH(workspace, stage, result)


def placed_and_gone(*arguments: Any) -> None:
    paper_files.place_paper_files(*arguments)
    raise Gone


def gone(*_: Any, **__: Any) -> None:
    raise Gone


FINISH = Workspace.finish
# Where the machine goes: in the last stage, with both models written, with it recorded as done,
# with the paper's files in place and the result not.
CUTS: dict[str, tuple[Any, str, Any]] = {
    "training": (run.StageRunner, "_report", None),
    "written": (Workspace, "finish", finish_of_the_last),
    "done": (run, "place_paper_files", gone),
    "placed": (run, "place_paper_files", placed_and_gone),
}


@pytest.mark.parametrize("cut", CUTS)
def test_cut_off_and_gone_on_with(
    cut: str, checkpoints: Any, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(folder: str, **more: Any) -> TrainReport:
        places = {"out_dir": tmp_path / folder / "out", "paper_out": tmp_path / folder / "paper"}
        given = {"changes": SHORT, "save_every": 2}
        return train(checkpoints["bert"], "movement", labelled, **{**places, **given, **more})

    whole = go("whole")
    # A training that was begun without its paper's files ends with them just as well.
    begun = {"changes": [*SHORT, "prune.layout=null"], "paper_out": None}
    owner, name, cutting = CUTS[cut]
    with monkeypatch.context() as patch:
        if cutting is None:
            report_of = owner._report
            patch.setattr(
                owner,
                name,
                lambda self, stage, *rest: (
                    gone() if stage.name == "prune" else report_of(self, stage, *rest)
                ),
            )
        else:
            patch.setattr(owner, name, cutting)
        with pytest.raises(Gone):
            go("parts", **(begun if cut == "training" else {}))
    assert (tmp_path / "parts" / "paper").exists() == (cut == "placed")
    report = go("parts", resume=True)
    assert report.paper is not None and whole.paper is not None
    assert report.paper.finalise == whole.paper.finalise
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"out", "paper"}
    for folder in ("out", "paper"):
        found, expected = (files(tmp_path / run / folder) for run in ("parts", "whole"))
        assert found.keys() == expected.keys()
        assert all(found[name] == expected[name] for name in found if name != "compression.json")


def test_other_files_in_the_way_are_not_taken_for_ours(
    checkpoints: Any, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (checkpoints["bert"], "movement", labelled, tmp_path / "out")
    paper, changes = tmp_path / "paper", SHORT
    with monkeypatch.context() as patch:
        patch.setattr(run, "place_paper_files", gone)
        with pytest.raises(Gone):
            train(*arguments, paper_out=paper, changes=changes)
    paper.mkdir()
    (paper / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="paper: exists already"):
        train(*arguments, paper_out=paper, changes=changes, resume=True)
    # A directory that cannot be made: nothing is lost, another does.
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"kept in .*out.training: go on with resume=True"):
        train(*arguments, paper_out=tmp_path / "file" / "p", changes=changes, resume=True)
    report = train(*arguments, paper_out=tmp_path / "other", changes=changes, resume=True)
    assert report.paper is not None and os.listdir(report.paper.directory)


def test_masks_that_are_gone(
    checkpoints: Any, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (checkpoints["bert"], "movement", labelled, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(run, "_put_in_place", gone)
        with pytest.raises(Gone):
            train(*arguments, changes=SHORT)
    with pytest.raises(ValueError, match="'prune' ended without its paper's files"):
        train(*arguments, paper_out=tmp_path / "paper", changes=SHORT, resume=True)
    assert train(*arguments, changes=SHORT, resume=True).paper is None


def test_files_of_another_layout(
    checkpoints: Any, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (checkpoints["bert"], "movement", labelled, tmp_path / "out")
    paper, other = tmp_path / "paper", [*SHORT, "prune.layout=sparsebert"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "_put_in_place", gone)
        with pytest.raises(Gone):
            train(*arguments, paper_out=paper, changes=SHORT)
    with pytest.raises(ValueError, match=r"in layout 'cap'.* got 'sparsebert'.*prune\.layout=cap"):
        train(*arguments, paper_out=paper, changes=other, resume=True)
    report = train(*arguments, paper_out=paper, changes=SHORT, resume=True)
    assert report.paper is not None and report.paper.layout == "cap"
