"""Run a recipe: stage by stage, resumable, to a plain Hugging Face directory."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from ...checkpoints import locate
from .data import Data, load_data
from .finalists import check_search, train_found
from .format_search import FormatSearch
from .paper_files import check_layout_stated, check_paper_out, place_paper_files
from .reading import load_recipe
from .recipe import Pooling, Recipe, Stage
from .report import PaperFiles, TrainReport
from .sources import digest, given_directories
from .stage_run import Pace, StageRunner
from .workspace import Workspace


def train(
    model: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: str | Path | Data,
    out_dir: str | Path,
    *,
    paper_out: str | Path | None = None,
    search: FormatSearch | None = None,
    seed: int = 0,
    changes: Iterable[str] = (),
    resume: bool = False,
    given: Mapping[str, str | Path] | None = None,
    device: str | torch.device = "cpu",
    pooling: Pooling | None = None,
    save_every: int | None = None,
    log_every: int = 50,
    progress: bool | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> TrainReport:
    """Compress a model by training.

    Args:
        model: Hugging Face checkpoint, a directory or a hub id.
        recipe: name, file, content, or recipe.
        data: file, folder (see :func:`~.data.load_data`), or data.
        out_dir: for the result, a Hugging Face directory; must not exist. Beside it, while the
            training runs, lies ``<out_dir>.training``.
        paper_out: for the result in its paper's own files too, in the ``layout`` that the recipe's
            last stage states; must not exist.
        search: formats to train instead of the recipe's own: the best by their scores without
            training are trained, and the best of these on the development part is the result.
            How it was chosen is in its compression.json, all that was scored in search.json.
        seed: of new heads, batches, dropout and masks; the same seed gives the same result on one
            machine.
        changes: "STAGE.KEY=VALUE" texts, see :func:`~.reading.load_recipe`.
        resume: go on with an unfinished training, to the very result it would have had; there
            must be one. Of another recipe, the stages before the first that differs are kept; a
            warning names those that begin again.
        given: stage -> directory of a model that stands for the stage's. It is not trained, and
            neither are stages that nothing else needs.
        device: where to train.
        pooling: how an encoder without a head makes one vector of a text, instead of the recipe's.
        save_every: optimizer steps between checkpoints; None keeps whole stages alone.
        log_every: optimizer steps between entries of the log.
        progress: show progress bars on stderr; None shows them where that is a terminal.
        revision: of a hub id, a branch, tag or commit.
        local_files_only: of a hub id, use what is cached and never the network.

    Raises:
        ValueError: the recipe, the data and the model do not fit each other, or this machine has
            no such device. Or, after the training, the layout cannot hold the model: ``out_dir`` is
            there then, and ``paper_out`` is not.
        FileExistsError: ``out_dir`` or ``paper_out`` exists.
        ImportError: PyYAML or accelerate is missing: ``pip install 'sparse-runtime[train]'``.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(
            "training needs accelerate, which transformers' Trainer is built on: "
            "pip install 'sparse-runtime[train]'"
        )
    started = time.perf_counter()
    out_dir = Path(out_dir).expanduser()
    if out_dir.exists():
        raise FileExistsError(f"out_dir {out_dir}: exists already; give a new directory (--out)")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, changes)
    elif list(changes):
        raise ValueError("changes: a Recipe is complete; change it before, or give its content")
    if pooling is not None:
        if pooling not in get_args(Pooling):
            words = ", ".join(get_args(Pooling))
            raise ValueError(f"pooling {pooling!r}: expected one of {words}")
        recipe = replace(recipe, pooling=pooling)
    if not isinstance(data, Data):
        data = load_data(data)
    chosen = _device(device)
    source = locate(model, revision=revision, local_files_only=local_files_only)
    directories = given_directories(given or {})
    paper = None if paper_out is None else Path(paper_out).expanduser()
    if paper is not None:
        check_layout_stated(recipe)
    runner = StageRunner(source, recipe, data, seed, chosen, directories, paper is not None)
    pace = Pace(save_every, log_every, progress)
    runner.check()
    plan: dict[str, Any] = {
        "model": digest(source),
        "given": {stage: digest(place) for stage, place in directories.items()},
        **_trained_by(recipe),
        "seed": seed,
        "data": data.fingerprint(),
    }
    if search is not None:
        if paper is not None:
            raise ValueError(
                "paper_out (--paper-out): a search has many candidates; leave it out, and train "
                "what was found once more with `per` as compression.json states it"
            )
        check_search(search, runner)
        # What was found and trained is of the whole recipe: none of it outlives a change.
        plan |= {"search": search.to_dict(), "recipe": plan.pop("stages")}
    workspace = Workspace(out_dir, plan, resume=resume)
    if workspace.again:
        warnings.warn(
            f"{workspace.folder}: the recipe has changed; begins again with stage "
            f"{workspace.again[0]!r} ({', '.join(workspace.again)} removed)",
            stacklevel=2,
        )
    try:
        if paper is not None:
            check_paper_out(paper, recipe, out_dir, workspace)
        if search is None:
            winner = None
            stages = tuple(runner.stage(stage, workspace, pace) for stage in runner.stages)
            result = workspace.model(recipe.stages[-1].name)
        else:
            winner = train_found(search, runner, workspace, pace)
            stages, result = winner.stages, winner.model
    except BaseException:
        workspace.discard_if_empty()
        raise
    files = _put_in_place(result, recipe.stages[-1], workspace, out_dir, paper)
    seconds = time.perf_counter() - started
    found = None if winner is None else winner.report
    return TrainReport(recipe.name, out_dir, seed, stages, seconds, files, found)


def _trained_by(recipe: Recipe) -> dict[str, Any]:
    """What weights depend on: not how it is called, nor in which files the end is written."""
    said = recipe.to_dict()
    for stage in said["stages"]:
        del stage["layout"]
        for section in (stage["pruning"], stage["quantization"]):
            if section is not None:
                # The first key that fits holds.
                section["per"] = list(section["per"].items())
    # It alone is scored on the development part, and says the whole recipe.
    said["stages"][-1]["last"] = True
    return {key: said[key] for key in ("pooling", "stages")}


def _put_in_place(
    model: Path, last: Stage, workspace: Workspace, out_dir: Path, paper: Path | None
) -> PaperFiles | None:
    """Move the model to ``out_dir``, its paper's files before it."""
    # The result comes last: once it is there, nothing goes on any more.
    files = None if paper is None else place_paper_files(paper, last, workspace)
    record = workspace.paper_record(last.name) or {}
    os.replace(model, out_dir)
    workspace.remove()
    if paper is not None and files is None:
        raise ValueError(
            f"paper_out {paper}: not written: {record['error']}. The result itself is whole, in "
            f"{out_dir}"
        )
    return files


def _device(device: str | torch.device) -> torch.device:
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {str(device)!r}: expected cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ValueError(
            f"device {str(device)!r}: PyTorch sees {count} CUDA devices here; say --device cpu, or "
            "install a PyTorch with CUDA"
        )
    return chosen
