"""finalise={"config": FILE}: a checkpoint that lacks nothing but its config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.tools.convert import convert

WEIGHT = "encoder.layer.0.output.dense.weight"


def test_the_config_of_a_checkpoint_without_one_can_be_named(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, config=None)
    with pytest.raises(CheckpointError, match="--finalise config=FILE"):
        open_checkpoint(directory)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"model_type": "bert"}))
    for named in (other, str(other)):
        assert open_checkpoint(directory, finalise={"config": named}).config["model_type"] == "bert"
    packed = tmp_path / "packed.json"
    packed.write_text(json.dumps({"sparse_runtime": {}}))
    with pytest.raises(CheckpointError, match=r"config=packed\.json: .* of a packed model"):
        open_checkpoint(directory, finalise={"config": packed})
    with pytest.raises(CheckpointError, match=r"config=.*nowhere\.json.*: no such file"):
        open_checkpoint(directory, finalise={"config": tmp_path / "nowhere.json"})
    with pytest.raises(CheckpointError, match="config means nothing for this checkpoint"):
        open_checkpoint(write({WEIGHT: torch.ones(2, 2)}), finalise={"config": other})


def test_what_was_named_is_recorded_without_its_place(
    bert: BertForMaskedLM,
    untied: dict[str, Tensor],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    config = bert.config.to_dict() | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "base.json").write_text(json.dumps(config))
    said = {"config": tmp_path / "base.json"}
    source = write(untied, config=None)
    report = convert(source, tmp_path / "packed", finalise=said, progress=False)
    assert report.arguments["finalise"] == {"config": "base.json"}
    assert str(tmp_path) not in (tmp_path / "packed" / "config.json").read_text()
    assert SparseModel.from_pretrained(tmp_path / "packed").task == "masked_lm"
