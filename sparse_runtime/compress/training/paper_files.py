"""The result in the files of its paper's own code, besides the plain directory.

The masks are in memory only while the last stage is, so the files are written into the workspace
before that stage is recorded as done, and take their place when the result does.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ..paper_layouts import Layout, export_paper_layout
from ..writing import copy_missing, new_directory
from .reading import load_recipe, recipe_names
from .recipe import Recipe, Stage
from .report import PaperFiles
from .workspace import Workspace


def check_paper_out(directory: Path, recipe: Recipe, out_dir: Path, workspace: Workspace) -> None:
    """Refuse before the training what could not be written after it.

    Raises:
        ValueError: the directory is not apart from ``out_dir``; or the stage is done, its masks
            gone, with no files or those of another layout.
        FileExistsError: the directory exists, with other files than this training has placed.
    """
    last = recipe.stages[-1]
    place = directory.resolve()
    for other in (out_dir.resolve(), workspace.folder.resolve()):
        if place.is_relative_to(other) or other.is_relative_to(place):
            raise ValueError(
                f"paper_out {directory}: expected a directory apart from {other}; choose another "
                "(--paper-out)"
            )
    # The same files are there where a training was cut off between placing them and the result.
    if directory.exists() and not _same_files(directory, workspace.paper(last.name)):
        raise FileExistsError(
            f"paper_out {directory}: exists already; give a new directory (--paper-out)"
        )
    if workspace.result(last.name) is None:
        return
    record = workspace.paper_record(last.name)
    if record is None:
        raise ValueError(
            f"paper_out {directory}: stage {last.name!r} ended without its paper's files, and its "
            "masks are gone; go on without paper_out (--paper-out)"
        )
    if record["layout"] != last.layout:
        raise ValueError(
            f"paper_out {directory}: stage {last.name!r} ended with files in layout "
            f"{record['layout']!r}, and its masks are gone: expected that layout, got "
            f"{last.layout!r}; go on with --set {last.name}.layout={record['layout']}, or without "
            "paper_out (--paper-out)"
        )


def write_paper_files(
    model: nn.Module, tokenizer: Any, stage: Stage, workspace: Workspace, extra_files: Path | None
) -> None:
    """Write a stage's model into the workspace; record how it is opened, or why it is not there.

    Args:
        model: with its masks and quantizers; it is moved to the CPU.
        tokenizer: saved beside it.
        stage: what it comes from.
        workspace: of the training.
        extra_files: a directory whose sentence-transformers files travel along.
    """
    assert stage.layout is not None  # as check_paper_out has seen
    folder = workspace.paper(stage.name)
    try:
        said = export_paper_layout(model.cpu(), folder, layout=stage.layout)
        tokenizer.save_pretrained(folder)
        if extra_files is not None:
            copy_missing(extra_files, folder)
    except Exception as error:
        # Whatever it is, the plain result of a long training must not go with it.
        shutil.rmtree(folder, ignore_errors=True)
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        workspace.record_paper(stage.name, {"layout": stage.layout, "error": text})
        return
    inside = {
        name: str(Path(value).relative_to(folder))
        for name, value in said.items()
        if isinstance(value, str) and Path(value).is_relative_to(folder)
    }
    record = {"layout": stage.layout, "finalise": said, "inside": inside}
    workspace.record_paper(stage.name, record)


def place_paper_files(directory: Path, stage: Stage, workspace: Workspace) -> PaperFiles | None:
    """Copy what :func:`write_paper_files` has written to where it belongs.

    A copy, since the directory may be on another disk than the workspace, and since what is left
    there lets a training go on that is cut off before its result is in place.

    Returns:
        The files, or None where there are none for the reason that was recorded.

    Raises:
        OSError: the directory cannot be written; the workspace is as it was.
    """
    record = workspace.paper_record(stage.name)
    assert record is not None and stage.layout is not None  # as check_paper_out has seen
    if "error" in record:
        return None
    if not directory.exists():
        try:
            with new_directory(directory) as staging:
                shutil.copytree(workspace.paper(stage.name), staging, dirs_exist_ok=True)
        except OSError as error:
            raise OSError(
                f"paper_out {directory}: {error}; all is trained and kept in {workspace.folder}: "
                "go on with resume=True (--resume), into another paper_out (--paper-out) or none"
            ) from error
    inside = {name: str(directory / file) for name, file in record["inside"].items()}
    return PaperFiles(directory, stage.layout, {**record["finalise"], **inside})


def check_layout_stated(recipe: Recipe) -> None:
    """Raise ValueError where the last stage states no layout."""
    last = recipe.stages[-1]
    if last.layout is None:
        having = [name for name in recipe_names() if load_recipe(name).stages[-1].layout]
        raise ValueError(
            f"paper_out: stage {last.name!r}, the last of recipe {recipe.name!r}, states no layout "
            f"of a paper; add `layout: NAME` to it (--set {last.name}.layout=NAME), one of "
            f"{', '.join(get_args(Layout))}, leave paper_out (--paper-out) out, or take a recipe "
            f"that states one: {', '.join(having)}"
        )


def _same_files(one: Path, other: Path) -> bool:
    if not one.is_dir() or not other.is_dir():
        return False
    first, second = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    )
    return first == second and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in first
    )
