"""NxMiFormer's configuration search for the suite: which format for which kind of matrix."""

from __future__ import annotations

from pathlib import Path

import yaml

from sparse_runtime.compress.training.data import Data
from sparse_runtime.compress.training.format_search import (
    FormatSearch,
    recipe_sections,
    search_formats,
)
from sparse_runtime.compress.training.models import load_model, load_tokenizer
from sparse_runtime.compress.training.recipe import Stage
from sparse_runtime.compress.training.task_data import evaluation_texts

ROWS = 256
EVALUATIONS = 30
"""Candidates that are scored: those of the least summed loss. The paper scores all of them."""


def searched(dense: Path, data: Data, limit: float, stage: str) -> tuple[str, ...]:
    """Search, and say the best configuration as changes of a recipe's stage.

    Args:
        dense: checkpoint of the fine-tuned model.
        data: its development part scores the candidates.
        limit: largest size of the matrices over their size in FP32, index included.
        stage: of the recipe.
    """
    model = load_model(dense, "classification", data).eval()
    part = evaluation_texts(
        Stage(name=stage, task="classification", steps=1), data.dev, load_tokenizer(dense)
    )
    assert part is not None

    wanted = FormatSearch(limit, top=1, evaluations=EVALUATIONS, rows=ROWS)
    best = search_formats(wanted, model, part, "classification", progress=False).scored[0]
    pruning, quantization = recipe_sections(best.configuration)
    return (
        f"{stage}.pruning.per={_flow(pruning)}",
        f"{stage}.quantization.per={_flow(quantization)}",
    )


def _flow(section: dict[str, str | None]) -> str:
    return str(yaml.safe_dump(section, default_flow_style=True, width=10_000)).strip()
