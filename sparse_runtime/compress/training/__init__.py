"""Training recipes: stages of pruning, distillation, quantization (docs/compress/training.md)."""

from __future__ import annotations

from .data import Data, Part, labelled_lines, load_data, set_aside
from .reading import load_recipe, recipe_names
from .report import StageReport, TrainReport
from .run import train

__all__ = [
    "Data",
    "Part",
    "StageReport",
    "TrainReport",
    "labelled_lines",
    "load_data",
    "load_recipe",
    "recipe_names",
    "set_aside",
    "train",
]
