"""What each method trained, in its paper's own layout, opens as the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.compress import export_paper_layout

SCHEDULE = {"begin": 0.1, "end": 0.5, "stop": 1.0}
ADMM = {"method": "admm", "structure": "2:4", "rho": 0.01}
# Scores that were learned give the masks back: one a weight, one a block, or by their threshold.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "top-k": ("cap", {"method": "movement", "structure": "unstructured@0.75"}),
    "blocks": ("cap", {"method": "movement", "structure": "block:4x4@0.75"}),
    "soft": ("cap", {"method": "soft-movement", "score_learning_rate": 0.5, "regularization": 50}),
    "heads": ("cap-structured", {"method": "structured", "ratios": [0.5], "batches": 2}),
    "groups": ("group-lasso", {"method": "group-lasso", "structure": "block:1x8@0.5"}),
    "n:m": ("nxm", ADMM),
}


@pytest.mark.parametrize("case", CASES)
def test_layout_opens_as_what_was_trained(
    case: str, drive: Callable[..., Any], tmp_path: Path
) -> None:
    layout, pruning = CASES[case]
    if "movement" in pruning["method"]:
        pruning = {**pruning, "schedule": SCHEDULE}
    run = drive(pruning)
    run.run(12)
    run.pruner.finish()
    # It refuses what would open as other weights than the model has.
    said = export_paper_layout(run.training.model, tmp_path / "out", layout=layout)
    assert (tmp_path / "out" / "config.json").is_file()
    assert set(said) == {"cap": {"threshold"}, "nxm": {"nxm"}}.get(layout, set())
