"""The half of `sparse-runtime prune` that trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ...compress.training import TrainReport
    from ...compress.training.format_search import FormatSearch
    from ...compress.training.recipe import Pooling


def by_recipe(
    model: str,
    out: str,
    recipe: str,
    data: str,
    *,
    paper_out: str | None,
    search: FormatSearch | None,
    changes: list[str] | None,
    given: list[str] | None,
    dev: float,
    test: float,
    seed: int,
    resume: bool,
    save_every: int,
    pooling: str | None,
    device: str | None,
    progress: bool | None,
    revision: str | None,
    local_files_only: bool,
) -> TrainReport:
    """Read the data and train.

    Args:
        model: checkpoint, a directory or a hub id.
        out: directory to write.
        recipe: a name or a .yaml file.
        data: file or folder.
        paper_out: directory for the result in its paper's own files, or None.
        search: for formats to train instead of the recipe's own, or None.
        changes: "STAGE.KEY=VALUE" texts.
        given: "STAGE=DIRECTORY" texts.
        dev: share of the training part to choose by.
        test: share of the training part to report on.
        seed: of the run.
        resume: go on with an unfinished training.
        save_every: steps between checkpoints.
        pooling: "auto", "mean" or "cls"; None is the recipe's.
        device: where to train; None is the CPU.
        progress: show progress bars on stderr; None shows them where that is a terminal.
        revision: of a hub id.
        local_files_only: use what is cached and never the network.

    Raises:
        ValueError: as ``load_data`` and ``train`` do, or a text of ``given`` is of another form.
    """
    from ...compress.training import load_data, train

    return train(
        model,
        recipe,
        load_data(data, dev=dev, test=test),
        out,
        paper_out=paper_out,
        search=search,
        seed=seed,
        changes=changes or (),
        resume=resume,
        given=_pairs(given),
        device=device or "cpu",
        save_every=save_every,
        pooling=cast("Pooling | None", pooling),  # checked there
        progress=progress,
        revision=revision,
        local_files_only=local_files_only,
    )


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not name or not equals or not path or name in pairs:
            raise ValueError(f"--stage {text!r}: expected STAGE=DIRECTORY, each stage once")
        pairs[name] = path
    return pairs
