"""What is refused, with an error that names the culprit and says what to do."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import AlreadyPackedError, CheckpointError, open_checkpoint

WEIGHT = "encoder.layer.0.dense.weight"


def refusal(directory: Path | str) -> str:
    """The message of the error that opening raises, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Payload:
    """Unpickling it by the ordinary rules makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing(
    zipped: bool, write: Callable[..., Path], tmp_path: Path
) -> None:
    directory, victim = write({WEIGHT: torch.ones(2, 2)}), tmp_path / "victim"
    (directory / "model.safetensors").unlink()
    data = {WEIGHT: torch.ones(2, 2), "payload": Payload(victim)}
    torch.save(data, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = refusal(directory)
    assert "pytorch_model.bin" in message
    assert "without running code" in message
    assert "save its state dict as safetensors" in message
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_runs_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    directory, victim = write({WEIGHT: torch.ones(2, 2)}, "torch"), tmp_path / "victim"
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(victim)))
    assert "without running code" in refusal(directory)
    assert not victim.exists()


def test_a_pickle_of_a_whole_model_is_refused(write: Callable[..., Path]) -> None:
    directory = write({}, "torch")
    torch.save(torch.nn.Linear(2, 2), directory / "pytorch_model.bin")
    message = refusal(directory)
    assert "without running code" in message
    # What torch has found, and not its advice to load the file all the same.
    assert "torch.nn.modules.linear.Linear" in message
    assert "weights_only" not in message and "Please" not in message


@pytest.mark.parametrize(
    ("data", "named"),
    [
        # A training checkpoint around the state dict.
        ({"state_dict": {WEIGHT: torch.ones(2, 2)}, "epoch": 3}, "epoch, state_dict"),
        ({WEIGHT: [1.0, 2.0]}, WEIGHT),
        ({3: torch.ones(2)}, "3"),
        ({WEIGHT: torch.eye(3).to_sparse()}, WEIGHT),
        # 4 bytes that claim to be 4 TB.
        ({WEIGHT: torch.ones(1).expand(1 << 20, 1 << 20)}, WEIGHT),
        ([torch.ones(2)], "list"),
    ],
)
def test_a_pickle_of_other_things_is_refused(
    data: Any, named: str, write: Callable[..., Path]
) -> None:
    directory = write({}, "torch")
    torch.save(data, directory / "pytorch_model.bin")
    message = refusal(directory)
    assert named in message
    assert "tensors by name" in message


# torch warns of pickle protocols that damage has made up.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", ["safetensors", "torch", "old_torch"])
def test_damaged_files_are_refused_or_harmless(layout: str, write: Callable[..., Path]) -> None:
    tensors = {WEIGHT: torch.ones(16, 16), "encoder.layer.0.dense.bias": torch.ones(16)}
    directory = write(tensors, layout)
    (path,) = (p for p in directory.iterdir() if p.suffix in (".safetensors", ".bin"))
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for case in range(120):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if case % 2 else whole)
        for _ in range(rng.randrange(1, 4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            checkpoint = open_checkpoint(directory)
            assert all(checkpoint.tensors[name].dtype == torch.float32 for name in tensors)
        except (CheckpointError, KeyError):  # KeyError: a name itself was hit
            refused += 1
    # Every truncated file is refused, whatever becomes of the flipped bytes.
    assert refused >= 60


def test_a_directory_of_checkpoints_is_told_apart(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write({WEIGHT: torch.ones(2, 2)}, config={"model_type": "bert"})
    for folder, text in (("1_Pooling", '{"pooling_mode": "mean"}'), ("notes", "no JSON")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
    assert "its folders checkpoint_1 have one; pass the one" in refusal(tmp_path)


def test_a_missing_config_lists_what_is_there(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, config=None)
    message = refusal(directory)
    assert "no config.json" in message
    assert "found: model.safetensors" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff", "[" * 100_000])
def test_a_damaged_config_is_refused(text: str, write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)})
    data = text.encode("utf-8", "surrogateescape")
    (directory / "config.json").write_bytes(data)
    assert "config.json: expected a JSON" in refusal(directory)


def test_an_adapter_is_told_to_be_merged(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, config=None)
    (directory / "adapter_config.json").write_text("{}")
    assert "merge it into its base model" in refusal(directory)


def test_other_frameworks_weights_are_named(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)})
    (directory / "model.safetensors").rename(directory / "tf_model.h5")
    message = refusal(directory)
    assert "no model.safetensors" in message
    assert "no pytorch_model.bin" in message
    assert "tf_model.h5" in message


def test_a_packed_model_is_told_apart(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, config={"sparse_runtime": {"format_version": 1}})
    with pytest.raises(AlreadyPackedError, match=r"already packed; .*SparseModel\.from_pretrained"):
        open_checkpoint(directory)


def test_a_file_and_an_empty_name_are_no_sources(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)})
    assert "got a file" in refusal(directory / "model.safetensors")
    assert "empty string" in refusal("")


def edit_index(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = directory.glob("*.index.json")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["safetensors_shards", "torch_shards"])
@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/b.bin", "..\\x.bin", "", "..", 7, None]
)
def test_an_index_cannot_name_files_elsewhere(
    shard: Any, layout: str, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied, layout)
    name = next(iter(untied))
    edit_index(directory, lambda index: index["weight_map"].update({name: shard}))
    message = refusal(directory)
    assert "expected names of files beside it" in message
    assert str(shard) in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_without_a_map_is_refused(
    weight_map: Any, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied, "safetensors_shards")
    edit_index(directory, lambda index: index.update(weight_map=weight_map))
    assert "expected 'weight_map'" in refusal(directory)


@pytest.mark.parametrize("layout", ["safetensors_shards", "torch_shards"])
def test_missing_shards_are_named(
    layout: str, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied, layout)
    (shard,) = (p for p in directory.iterdir() if "00002-of-00002" in p.name)
    shard.unlink()
    message = refusal(directory)
    assert "shards that are missing" in message
    assert shard.name in message


def test_an_index_and_its_shards_must_agree(
    write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    other = "bert.encoder.layer.0.output.dense.bias"
    directory = write(untied, "safetensors_shards")
    edit_index(directory, lambda index: index["weight_map"].pop(name))
    assert f"does not place there: {name}" in refusal(directory)
    directory = write(untied, "safetensors_shards")
    edit_index(
        directory,
        lambda index: index["weight_map"].update({name: index["weight_map"][other]}),
    )
    assert f"do not hold them: {name}" in refusal(directory)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.int8, torch.uint8, torch.int64, torch.uint16, torch.bool),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
    ],
)
@pytest.mark.parametrize("layout", ["safetensors", "torch"])
def test_other_dtypes_are_refused(
    dtype: torch.dtype, layout: str, write: Callable[..., Path]
) -> None:
    message = refusal(write({WEIGHT: torch.zeros(2, 2).to(dtype)}, layout))
    assert "expected float32, bfloat16 or float16" in message
    assert f"{WEIGHT} ({str(dtype)[6:]})" in message
    wide = dtype == torch.float64
    assert ("save the model as float32" in message) == wide
    assert ("mean nothing without their layout" in message) != wide


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["safetensors", "torch"])
def test_numbers_that_are_not_finite_are_refused_where_they_are_read(
    value: float, layout: str, write: Callable[..., Path]
) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = value
    checkpoint = open_checkpoint(write({WEIGHT: weight, "bias": torch.ones(2)}, layout))
    assert checkpoint.tensors["bias"].sum() == 2
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}: .* got {value} at \[1, 2\]"):
        checkpoint.tensors[WEIGHT]


def test_a_file_without_tensors_is_refused(write: Callable[..., Path]) -> None:
    buffers = {"embeddings.position_ids": torch.arange(4)}
    assert "holds no tensors" in refusal(write(buffers))


PREFIX = "bert.encoder.layer.0.output.dense"


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (("weight", "weight_mask_scores"), "movement pruning"),
        (("weight", "weight_ampere_mask_scores"), "movement pruning"),
        (("weight", "binary_mask"), "NNCF"),
        (("qweight", "scales"), "GPTQ or AWQ"),
        (("base_layer.weight", "lora_A.default.weight"), "a LoRA adapter"),
        (("weight", "lora_embedding_A"), "a LoRA adapter"),
        (("weight", "lora_magnitude_vector.default.weight"), "a LoRA adapter"),
        (("parametrizations.weight.original",), "torch.nn.utils.parametrize"),
    ],
)
def test_foreign_layouts_are_named_and_refused(
    names: tuple[str, ...], who: str, write: Callable[..., Path]
) -> None:
    tensors = {f"{PREFIX}.{name}": torch.ones(2, 2) for name in names}
    message = refusal(write(tensors))
    assert f"layout of {who}" in message
    assert "not supported yet" in message
    assert any(f"{PREFIX}.{name}" in message for name in names)


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (("weight", "weight_scale"), "compressed-tensors"),
        (("weight_packed", "weight_shape"), "compressed-tensors"),
        (("weight.compressed", "weight.bitmask"), "compressed-tensors"),
        (("compressed", "bitmask", "shape"), "compressed-tensors"),
        (("_weight_qdata", "_weight_scale"), "torchao"),
        (("weight", "SCB"), "bitsandbytes"),
    ],
)
def test_quantized_tensors_without_their_config_are_refused(
    names: tuple[str, ...], who: str, write: Callable[..., Path]
) -> None:
    message = refusal(write({f"{PREFIX}.{name}": torch.ones(2, 2) for name in names}))
    assert f"layout of {who}" in message
    assert "which config.json does not state" in message


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("quantization_config", {"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ("compression_config", {"format": "pack-quantized"}, "'pack-quantized'"),
        ("sparsity_config", {"format": "sparse-bitmask"}, "'sparse-bitmask'"),
        ("quantization_config", "int8", "no method named"),
    ],
)
def test_a_config_that_states_compression_is_refused(
    section: str, value: Any, said: str, write: Callable[..., Path]
) -> None:
    message = refusal(write({WEIGHT: torch.ones(2, 2)}, config={section: value}))
    assert section in message
    assert said in message
    assert "in no layout of that kind" in message


def test_an_empty_compression_section_means_nothing(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, config={"quantization_config": None})
    assert list(open_checkpoint(directory).tensors) == [WEIGHT]


def test_dtypes_that_torch_has_not_are_refused(write: Callable[..., Path]) -> None:
    directory = write({WEIGHT: torch.ones(2, 4)})
    path = directory / "model.safetensors"
    # Eight numbers of four bits are as many bytes as one float.
    path.write_bytes(path.read_bytes().replace(b'"F32","shape":[2,4]', b'"F4", "shape":[8,8]'))
    assert f"{WEIGHT}: expected a dtype that torch has" in refusal(directory)


def test_a_zip_of_something_else_is_refused(write: Callable[..., Path]) -> None:
    directory = write({}, "torch")
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    assert "pytorch_model.bin" in refusal(directory)
