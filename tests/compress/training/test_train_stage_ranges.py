"""Numbers of a stage that no training could be run with."""

from __future__ import annotations

import pytest

from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.recipe import Stage


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("final_learning_rate", -1.0),
        ("lr_cycles", 0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("weight_decay", -0.1),
        ("clip", -1.0),
        ("max_length", 0),
        ("dropout", 1.0),
        ("dropout", -0.5),
        ("mask_probability", 0.0),
        ("mask_probability", 1.5),
    ],
)
def test_a_number_out_of_its_range_is_refused(key, value) -> None:
    stage = {"name": "tune", "task": "classification", "steps": 1, "lr_schedule": "sawtooth"}
    with pytest.raises(ValueError, match=f"stage 'tune', {key}: expected .*, got {value}"):
        parse({"name": "own", "stages": [{**stage, key: value}]})


def test_the_ends_of_ranges_are_taken() -> None:
    ends = {"warmup": 0.0, "clip": 0.0, "dropout": 0.0, "mask_probability": 1.0, "max_length": None}
    Stage(name="tune", task="masked_lm", steps=1, **ends)
