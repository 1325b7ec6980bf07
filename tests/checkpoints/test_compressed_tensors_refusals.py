"""What of compressed-tensors is refused: files that contradict themselves, and what cannot run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.compressed_tensors import (
    STATIC,
    export_bitmask,
    export_integers,
)

CONFIG = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}
LAYER = "bert.encoder.layer.0.output.dense"  # [32, 48]
Exported = tuple[dict[str, Tensor], dict[str, Any]]
Changes = dict[str, Tensor | None]


@pytest.fixture
def refusal(write: Callable[..., Path]) -> Callable[..., str]:
    """refusal(exported, changes of LAYER's tensors) -> the error of opening or of reading."""

    def refused(exported: Exported, changes: Changes | None = None, **arguments: Any) -> str:
        tensors, section = dict(exported[0]), exported[1]
        for part, tensor in (changes or {}).items():
            assert tensor is not None or f"{LAYER}.{part}" in tensors
            tensors.pop(f"{LAYER}.{part}", None)
            if tensor is not None:
                tensors[f"{LAYER}.{part}"] = tensor
        directory = write(tensors, config={**CONFIG, "quantization_config": section})
        with pytest.raises(CheckpointError) as caught:
            checkpoint = open_checkpoint(directory, **arguments)
            for name in checkpoint.tensors:
                checkpoint.tensors[name]
            for linear in checkpoint.linears.values():
                linear.load()
        message = str(caught.value)
        assert "\n" not in message
        return message

    return refused


def scale_with(value: float) -> Tensor:
    scale = torch.ones(32, 1)
    scale[5] = value
    return scale


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_scale": scale_with(float("nan"))}, "finite scales above 0, got nan"),
        ({"weight_scale": scale_with(float("inf"))}, "finite scales above 0, got inf"),
        ({"weight_scale": scale_with(0.0)}, "finite scales above 0, got 0.0"),
        ({"weight_scale": scale_with(-1.0)}, "finite scales above 0, got -1.0"),
        ({"weight_scale": torch.ones(31, 1)}, "[32, 1] or [32], got float32 [31, 1]"),
        ({"weight_scale": torch.ones(32, 1, dtype=torch.int32)}, "got int32 [32, 1]"),
        ({"weight_scale": None}, f"the file has no {LAYER}.weight_scale"),
        ({"weight": None}, f"{LAYER}.weight is missing"),
        ({"weight": torch.zeros(32, 48)}, "got float32; the file and its config.json disagree"),
        ({"weight": torch.zeros(32, 48, dtype=torch.uint8)}, "got uint8"),
        ({"weight": torch.zeros(32, dtype=torch.int8)}, "expected a matrix, got [32]"),
        ({"weight": torch.zeros(32, 0, dtype=torch.int8)}, "sizes from 1, got [32, 0]"),
        ({"weight_zero_point": torch.ones(32, 1, dtype=torch.int8)}, "states symmetric values"),
        ({"weight_global_scale": torch.ones(1)}, "has no place for it"),
        ({"output_scale": torch.ones(1)}, "has no place for it"),
        ({"weight_g_idx": torch.arange(48).flip(0)}, "actorder='static'"),
    ],
)
def test_integers_that_disagree(
    changes: Changes, said: str, refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    message = refusal(export_integers(untied), changes)
    assert said in message
    assert LAYER in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_scale": torch.tensor([0.0])}, "finite scales above 0"),
        ({"input_scale": torch.tensor([float("nan")])}, "finite scales above 0"),
        ({"input_scale": torch.tensor([1e-40])}, "the file is damaged"),
        ({"input_scale": torch.ones(2)}, "input_scale: expected"),
        ({"input_scale": None}, "input_scale is missing"),
        ({"input_zero_point": torch.tensor([3], dtype=torch.int8)}, "expected 0"),
        ({"input_zero_point": torch.tensor([3.0])}, "expected int8"),
    ],
)
def test_static_inputs_that_disagree(
    changes: Changes, said: str, refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    message = refusal(export_integers(untied, inputs=STATIC), changes)
    assert said in message
    assert LAYER in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_shape": None}, "weight_shape is missing"),
        ({"weight_shape": torch.tensor([32, 49])}, "int32 [32, 7], got int32 [32, 6]"),
        ({"weight_shape": torch.tensor([-32, 48])}, "int32 [-32, 6]"),
        ({"weight_shape": torch.tensor([32, 2**40])}, "got int32 [32, 6]"),
        ({"weight_shape": torch.tensor([32.0, 48.0])}, "got float32 [2]"),
        ({"weight_packed": torch.zeros(32, 6, dtype=torch.int64)}, "got int64"),
        ({"weight_packed": torch.zeros(32, 5, dtype=torch.int32)}, "got int32 [32, 5]"),
        ({"weight_zero_point": None}, "weight_zero_point is missing"),
        ({"weight_zero_point": torch.zeros(32, 6, dtype=torch.int32)}, "int32 [4, 6]"),
        ({"weight_scale": torch.ones(32, 5)}, "[32, 6], got float32 [32, 5]"),
        ({"weight": torch.zeros(32, 48)}, "both plain and in the layout compressed-tensors"),
    ],
)
def test_packed_integers_that_disagree(
    changes: Changes, said: str, refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    exported = export_integers(
        untied, packed=True, bits=4, group_size=8, symmetric=False, inputs=None
    )
    message = refusal(exported, changes)
    assert said in message
    assert LAYER in message


def test_integers_beyond_their_bits(refusal: Callable[..., str], untied: dict[str, Tensor]) -> None:
    exported = export_integers(untied, bits=4, inputs=None)
    message = refusal(exported, {"weight": torch.full((32, 48), 8, dtype=torch.int8)})
    assert f"{LAYER}.weight: expected integers from -8 to 7, got 8 to 8" in message


def bitmask_of(weight: Tensor) -> dict[str, Tensor]:
    tensors, _ = export_bitmask({f"{LAYER}.weight": weight})
    return {name.removeprefix(f"{LAYER}."): tensor for name, tensor in tensors.items()}


HALF = bitmask_of(torch.eye(32, 48))


def flipped(row: int, column: int) -> Tensor:
    bits = HALF["bitmask"].clone()
    bits[row, column // 8] ^= 1 << (column % 8)
    return bits


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compressed": torch.ones(31)}, "a bit for each of the 31 values"),
        ({"compressed": None}, "compressed is missing"),
        ({"compressed": torch.ones(32, dtype=torch.float64)}, "got float64"),
        ({"bitmask": flipped(3, 7)}, "got 33"),
        ({"bitmask": torch.zeros(32, 6, dtype=torch.uint8)}, "got 0"),
        ({"bitmask": torch.zeros(32, 5, dtype=torch.uint8)}, "uint8 [32, 6]"),
        ({"bitmask": torch.zeros(32, 6, dtype=torch.int8)}, "got int8"),
        ({"bitmask": None}, "without the bitmask"),
        ({"row_offsets": torch.arange(32).flip(0)}, "expected the sums of the bitmask's rows"),
        ({"row_offsets": torch.full((32,), 2**40)}, "expected the sums of the bitmask's rows"),
        ({"row_offsets": torch.arange(31)}, "int64 [32], got int64 [31]"),
        ({"row_offsets": None}, "nothing tells where the rows begin"),
        ({"shape": torch.tensor([32, 50])}, "for a weight of [32, 50]"),
        ({"shape": torch.tensor([0, 48])}, "two sizes of at least 1"),
        ({"shape": torch.tensor([-32, -48])}, "two sizes of at least 1"),
        ({"shape": torch.tensor([2**40, 2**40])}, "two sizes of at least 1"),
        ({"shape": torch.tensor([32, 48, 1])}, "expected two integers"),
        ({"shape": None}, "shape is missing"),
        ({"weight": torch.ones(32, 48)}, "both plain and in the layout"),
    ],
)
def test_bitmasks_that_disagree(
    changes: Changes, said: str, refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    exported = export_bitmask(untied | {f"{LAYER}.weight": torch.eye(32, 48)})
    message = refusal(exported, changes)
    assert said in message
    assert LAYER in message


def test_a_bitmask_with_bits_behind_its_columns(refusal: Callable[..., str]) -> None:
    weight = torch.eye(4, 6)
    tensors, section = export_bitmask({f"{LAYER}.weight": weight})
    wrong = tensors[f"{LAYER}.bitmask"] | 128
    assert "beyond the 6 columns" in refusal((tensors, section), {"bitmask": wrong})


def test_rows_of_two_of_four_must_be_equally_full(refusal: Callable[..., str]) -> None:
    # Six bits in the first row and two in the second: the sum is right, the rows are not.
    tensors, section = export_bitmask({f"{LAYER}.weight": torch.ones(2, 8)}, two_of_four=True)
    wrong = torch.tensor([[0b111111], [0b11]], dtype=torch.uint8)
    assert "4 bits in each row" in refusal((tensors, section), {"bitmask": wrong})


def changed(section: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one entry replaced, at a place such as "config_groups.group_0.format"."""
    key, _, rest = path.partition(".")
    return {**section, key: changed(section.get(key) or {}, rest, value) if rest else value}


GROUP = "config_groups.group_0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("kv_cache_scheme", {"num_bits": 8}, "keys and values of attention"),
        ("transform_config", {"config_groups": {}}, "rotates"),
        ("moe_sparsity_config", {"method": "prune"}, "experts"),
        ("new_key", 1, "new_key is not known"),
        (f"{GROUP}.new_key", 1, "new_key is not known"),
        (f"{GROUP}.weights.new_key", 1, "new_key is not known"),
        ("sparsity_config", {"format": "dense", "new_key": 1}, "new_key is not known"),
        ("sparsity_config", {"format": "sparse-bitmask"}, "no tensor is compressed so"),
        ("sparsity_config", {"format": "marlin"}, "got 'marlin'"),
        ("quantization_status", "initialized", "not final"),
        ("quantization_status", "calibration", "not final"),
        ("config_groups", ["W8A8"], "expected groups"),
        (GROUP, ["Linear"], "write the group out"),
        (f"{GROUP}.targets", "Linear", "a list of names"),
        (f"{GROUP}.targets", ["Conv1d"], "does not target it"),
        (f"{GROUP}.weights", None, "not its weight"),
        (f"{GROUP}.weights", 8, "expected an object"),
        (f"{GROUP}.weights.num_bits", 2, "integers of 4 or 8 bits"),
        (f"{GROUP}.weights.num_bits", "8", "not a description"),
        (f"{GROUP}.weights.type", "complex", "not a description"),
        (f"{GROUP}.weights.strategy", "row", "not a description"),
        (f"{GROUP}.weights.strategy", "block", "not a description"),
        (f"{GROUP}.weights.strategy", "token", "a scale for each token"),
        (f"{GROUP}.weights.strategy", "group", "not a description"),
        (f"{GROUP}.weights.dynamic", True, "static integers"),
        (f"{GROUP}.format", "marlin-24", "one GPU kernel"),
        (f"{GROUP}.format", "nvfp4-pack-quantized", "got 'nvfp4-pack-quantized'"),
        ("ignore", ["re:.*output"], "does not target it, or ignores it"),
        ("ignore", {"a": 1}, "a list of names"),
        ("ignore", ["re:(a"], "balanced parentheses"),
        ("ignore", ["re:(?=a)"], "the pattern 're:(?=a)' cannot be read"),
    ],
)
def test_sections_that_are_refused(
    path: str, value: Any, said: str, refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied)
    assert said in refusal((tensors, changed(section, path, value)))


def test_a_hostile_pattern_takes_no_time(
    refusal: Callable[..., str], untied: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    tensors, section = export_integers(untied)
    begin = time.perf_counter()
    for pattern in ("re:(.*)*x", "re:((a|b|.)+)+!", "re:" + "(.*.*)" * 30 + "!", "re:(.?){64}z"):
        harmless = changed(section, "ignore", ["re:cls.*", pattern])
        directory = write(tensors, config={**CONFIG, "quantization_config": harmless})
        assert len(open_checkpoint(directory).linears) == 12
    assert "at most" in refusal((tensors, changed(section, "ignore", ["re:((.{9}){9}){64}"])))
    assert "at most" in refusal((tensors, changed(section, "ignore", ["re:" + "a" * 5000])))
    assert time.perf_counter() - begin < 20


def test_marlin_is_refused(refusal: Callable[..., str], untied: dict[str, Tensor]) -> None:
    tensors, section = export_integers(untied)
    parts = {"meta": torch.zeros(2, 2, dtype=torch.int16), "scale_packed": torch.ones(1, 2)}
    assert "marlin-24" in refusal((tensors, section), parts)


def test_activations_means_nothing_where_they_are_stated(
    refusal: Callable[..., str], untied: dict[str, Tensor]
) -> None:
    message = refusal(export_integers(untied), finalise={"activations": "none"})
    assert "activations means nothing for this checkpoint" in message


def test_a_scale_without_a_section_is_refused(
    write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    tensors, _ = export_integers(untied)
    with pytest.raises(CheckpointError, match="in the layout of compressed-tensors"):
        open_checkpoint(write(tensors))


JUNK = (None, 0, 1, -1, 2**70, 1.5, True, "x", "", "group", [], ["re:a"], [1], {}, {"a": 1})


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside of JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


def test_any_value_in_the_section_is_read_or_refused(
    write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(
        untied, packed=True, bits=4, group_size=8, symmetric=False, inputs=STATIC
    )
    section["config_groups"]["group_0"]["output_activations"] = STATIC
    for name in [name for name in tensors if name.endswith("input_scale")]:
        tensors[f"{name.removesuffix('input_scale')}output_scale"] = torch.ones(1)
    directory = write(tensors)
    refused = opened = 0
    for path in places(section):
        for junk in JUNK:
            damaged = json.loads(json.dumps(section))
            parent = damaged
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = junk
            config = {**CONFIG, "quantization_config": damaged}
            (directory / "config.json").write_text(json.dumps(config))
            try:
                checkpoint = open_checkpoint(directory)
                opened += 1
            except CheckpointError:
                refused += 1
                continue
            for linear in checkpoint.linears.values():
                assert linear.load().weight.shape == linear.shape
    assert refused > 200
    assert opened > 20
