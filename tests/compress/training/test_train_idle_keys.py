"""Keys of a recipe that would do nothing are refused; their defaults are not."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_runtime.compress.training.reading import parse

STAGE = {"name": "prune", "task": "classification", "steps": 2}
MAGNITUDE = {"method": "magnitude", "structure": "unstructured@0.5"}
WITHOUT_EVENTS: list[dict[str, Any]] = [
    {"method": "lock"},
    {"method": "admm", "structure": "2:4"},
    {"method": "masked-ste", "structure": "2:4"},
    {"method": "group-lasso", "structure": "block:1x4@0.5"},
    {"method": "structured"},
]
DYNAMIC = {"weights": "int8", "scales": "row", "activations": "dynamic"}


def refused(message: str, **keys: Any) -> None:
    with pytest.raises(ValueError, match=f"stage 'prune', {message}"):
        parse({"name": "own", "stages": [{**STAGE, **keys}]})


@pytest.mark.parametrize("pruning", WITHOUT_EVENTS)
def test_schedules_of_methods_without_events(pruning: dict[str, Any]) -> None:
    parse({"name": "own", "stages": [{**STAGE, "pruning": pruning}]})
    parse({"name": "own", "stages": [{**STAGE, "pruning": {**pruning, "schedule": {}}}]})
    refused(
        "lr_schedule: rewinding goes back at pruning events, and method .* has none; say linear",
        pruning=pruning,
        lr_schedule="rewinding",
    )
    refused(
        "pruning.schedule: method .* has no pruning events; leave it out",
        pruning={**pruning, "schedule": {"begin": 0.2}},
    )


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({**MAGNITUDE, "floor": 0.02}, "floor: expected 0.01, for it counts under scope global"),
        (
            {**MAGNITUDE, "schedule": {"initial": 0.6}},
            "schedule.initial: expected at most 0.5, the sparsity to reach, got 0.6",
        ),
        (
            {"method": "admm", "structure": "2:4", "scales": "row"},
            "scales: expected chunk:32, for it belongs to values int8 or int4, got row",
        ),
        (
            {"method": "admm", "structure": "2:4", "scale": "search"},
            "scale: expected max, for it belongs to values int8 or int4, got search",
        ),
    ],
)
def test_keys_of_pruning(pruning: dict[str, Any], message: str) -> None:
    refused(f"pruning.{message}", pruning=pruning)


def test_an_initial_sparsity_that_one_matrix_reaches() -> None:
    schedule = {"initial": 0.6}
    pruning = {**MAGNITUDE, "schedule": schedule, "per": {"query": "unstructured@0.9"}}
    parse({"name": "own", "stages": [{**STAGE, "pruning": pruning}]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"final_learning_rate": 1e-5}, "final_learning_rate: expected 0, .* sawtooth, not linear"),
        ({"lr_schedule": "constant", "lr_cycles": 2}, "lr_cycles: expected 1, .*, not constant"),
        (
            {"lr_schedule": "sawtooth", "learning_rate": 1e-4, "final_learning_rate": 1e-3},
            "final_learning_rate: expected at most learning_rate 0.0001, .*, got 0.001",
        ),
        ({"quantization": {**DYNAMIC, "start": 0.1}}, "quantization.start: expected 0, .*dynamic"),
        ({"quantization": {**DYNAMIC, "freeze": 0.6}}, "quantization.freeze: expected 0.5, .*stat"),
    ],
)
def test_keys_of_schedules_and_ranges(keys: dict[str, Any], message: str) -> None:
    refused(message, **keys)
