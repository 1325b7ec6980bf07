"""Every layout that opens gives the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from sparse_runtime.checkpoints import open_checkpoint

LAYOUTS = ("safetensors", "safetensors_shards", "torch", "old_torch", "torch_shards")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_tensors_that_were_written(
    layout: str, write: Callable[..., Path], untied: dict[str, Tensor], layouts: dict[str, str]
) -> None:
    directory = write(untied, layout)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.layout == layouts[layout]
    assert checkpoint.directory == directory
    assert checkpoint.config["hidden_size"] == 32
    assert set(checkpoint.tensors) == set(untied)
    for name, tensor in untied.items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
        assert checkpoint.tensors.shape(name) == tuple(tensor.shape)
        assert checkpoint.tensors.dtype(name) == "float32"
        assert checkpoint.tensors.nbytes(name) == tensor.nbytes
    assert (checkpoint.aliases, checkpoint.renamed, checkpoint.dropped) == ({}, {}, {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["safetensors", "torch"])
def test_half_precision_stays_what_it_is(
    layout: str, dtype: torch.dtype, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    halved = {name: tensor.to(dtype) for name, tensor in untied.items()}
    checkpoint = open_checkpoint(write(halved, layout))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert checkpoint.tensors.dtype(name) == str(dtype).removeprefix("torch.")
    assert checkpoint.tensors.nbytes(name) == 2 * 48 * 32
    assert torch.equal(checkpoint.tensors[name], halved[name])


@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
def test_what_save_pretrained_writes_opens(
    shard_size: str, bert: BertForMaskedLM, untied: dict[str, Tensor], tmp_path: Path
) -> None:
    bert.save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = open_checkpoint(str(tmp_path))
    assert ("in shards" in checkpoint.layout) == (shard_size == "10KB")
    assert set(checkpoint.tensors) == set(untied)
    assert all(torch.equal(checkpoint.tensors[name], untied[name]) for name in untied)


def test_safetensors_are_preferred_to_pickles(
    write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied)
    (directory / "pytorch_model.bin").write_bytes(b"never read")
    assert open_checkpoint(directory).layout == "hugging_face: model.safetensors"


def test_a_transposed_tensor_of_a_pickle_keeps_its_values(write: Callable[..., Path]) -> None:
    weight = torch.arange(6.0).view(2, 3).t()
    checkpoint = open_checkpoint(write({"encoder.layer.0.dense.weight": weight}, "torch"))
    assert torch.equal(checkpoint.tensors["encoder.layer.0.dense.weight"], weight)


def test_parameters_lose_their_gradient(write: Callable[..., Path]) -> None:
    tensors = {"encoder.layer.0.dense.weight": torch.nn.Parameter(torch.ones(2, 2))}
    opened = open_checkpoint(write(tensors, "torch")).tensors["encoder.layer.0.dense.weight"]
    assert not opened.requires_grad


def test_tensors_are_read_only_when_asked_for(
    write: Callable[..., Path], untied: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_runtime.checkpoints.containers import SafetensorsFile

    loaded: list[str] = []
    load = SafetensorsFile.load

    def count(self: SafetensorsFile, name: str) -> Tensor:
        loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(SafetensorsFile, "load", count)
    checkpoint = open_checkpoint(write(untied))
    name = "bert.pooler.dense.weight"
    assert name not in checkpoint.tensors
    name = "bert.encoder.layer.1.output.dense.weight"
    assert name in checkpoint.tensors
    checkpoint.tensors.shape(name)
    assert loaded == []
    checkpoint.tensors[name]
    assert loaded == [name]


def test_a_sentence_transformers_folder_is_pointed_at(tmp_path: Path) -> None:
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    (inner / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="lies in its folder 0_Transformer; pass that directory"):
        open_checkpoint(tmp_path)
