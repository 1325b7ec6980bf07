"""torchao's Int8Tensor: what the metadata says is kept, and refused where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparse_runtime.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from sparse_runtime.spec import ActivationSpec

LAYER = "encoder.layer.0.output.dense"  # [6, 8]
CONFIG = {"model_type": "bert", "quantization_config": {"quant_method": "torchao"}}
INPUTS = {
    "_type": "QuantizeTensorToInt8Kwargs",
    "_data": {
        "granularity": {"_type": "PerRow", "_data": {"dim": -1}},
        "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
        "reduce_range": False,
    },
}
QDATA = torch.arange(48).reshape(6, 8).sub(24).to(torch.int8)
PARTS = {
    "qdata": QDATA,
    "scale": torch.full((6, 1), 0.5),
    "zero_point": torch.zeros(6, 1, dtype=torch.int8),
}


def described(parts: dict[str, Tensor], **data: Any) -> dict[str, Any]:
    return {
        "_type": "Int8Tensor",
        "_data": {
            "act_quant_kwargs": None,
            "reduce_range": False,
            "block_size": [1, 8],
            "dtype": {"_type": "torch.dtype", "_data": "float32"},
            **data,
        },
        "_tensor_data_names": sorted(parts),
    }


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Checkpoint]:
    """opened(parts, metadata of the weight or None) -> a checkpoint of one layer."""

    def write_and_open(
        parts: dict[str, Tensor], metadata: Any = None, module: str = LAYER, **arguments: Any
    ) -> Checkpoint:
        tensors = {f"{module}._weight_{name}": tensor for name, tensor in parts.items()}
        texts = {"format": "pt", f"{module}.bias": '{"_type": "Tensor"}'}
        if metadata is not None:
            texts[f"{module}.weight"] = (
                metadata if isinstance(metadata, str) else json.dumps(metadata)
            )
        save_file(
            tensors | {f"{module}.bias": torch.ones(6)}, tmp_path / "model.safetensors", texts
        )
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        return open_checkpoint(tmp_path, **arguments)

    return write_and_open


def test_rows_with_dynamic_inputs(opened: Callable[..., Checkpoint]) -> None:
    checkpoint = opened(PARTS, described(PARTS, act_quant_kwargs=INPUTS))
    linear = checkpoint.linears[LAYER]
    stored = linear.load()
    assert torch.equal(stored.weight, QDATA)
    assert torch.equal(stored.scales, torch.full((6,), 0.5))
    assert stored.zero_points is None
    assert linear.activations == ActivationSpec("dynamic", "int8", narrow_range=False)
    assert linear.nbytes == 48 + 6 * 4 + 6
    (step,) = checkpoint.steps
    assert step.endswith("int8, scales row, inputs dynamic int8, ties apart")


def test_wrappers_prefixes_are_undone_in_the_metadata_too(
    opened: Callable[..., Checkpoint],
) -> None:
    assert LAYER in opened(PARTS, described(PARTS), module=f"module.{LAYER}").linears


def test_groups_zero_points_and_static_inputs(opened: Callable[..., Checkpoint]) -> None:
    parts = {
        "qdata": QDATA,
        "scale": torch.arange(1.0, 13).reshape(6, 2),
        "zero_point": torch.arange(12, dtype=torch.int8).reshape(6, 2),
        "act_quant_scale": torch.tensor([[0.25]]),
        "act_quant_zero_point": torch.tensor([[0]], dtype=torch.int8),
    }
    linear = opened(parts, described(parts, block_size=[1, 4], act_quant_kwargs=INPUTS)).linears[
        LAYER
    ]
    assert linear.values.scales == "group:4"
    assert linear.activations == ActivationSpec("static", "int8", 0.25, 0)
    zero_points = linear.load().zero_points
    assert zero_points is not None
    assert torch.equal(zero_points, torch.arange(12, dtype=torch.int8))


def test_tables_become_floats(opened: Callable[..., Checkpoint]) -> None:
    table = "embeddings.word_embeddings"
    parts = PARTS | {"zero_point": torch.full((6, 1), 3, dtype=torch.int8)}
    checkpoint = opened(parts, described(parts), module=table)
    assert torch.equal(checkpoint.tensors[f"{table}.weight"], (QDATA.float() - 3) * 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": torch.full((6, 1), float("nan"))}, "finite scales above 0, got nan"),
        ({"scale": torch.zeros(6, 1)}, "finite scales above 0, got 0.0"),
        ({"scale": -torch.ones(6, 1)}, "finite scales above 0, got -1.0"),
        ({"scale": torch.ones(6)}, "[6, 1], got float32 [6]"),
        ({"scale": None}, "_weight_scale is missing"),
        ({"qdata": None}, "_weight_qdata is missing"),
        ({"qdata": QDATA.float()}, "got float32 [6, 8]"),
        ({"zero_point": torch.zeros(5, 1, dtype=torch.int8)}, "_weight_zero_point: expected"),
        ({"zero_point": torch.zeros(6, 1)}, "_weight_zero_point: expected"),
        ({"zero_point": torch.full((6, 1), 300)}, "zero points from -128 to 127"),
    ],
)
def test_parts_that_disagree(
    changes: dict[str, Tensor | None], said: str, opened: Callable[..., Checkpoint]
) -> None:
    parts = {name: t for name, t in (PARTS | changes).items() if t is not None}
    with pytest.raises(CheckpointError) as caught:
        opened(parts, described(PARTS)).linears[LAYER].load()
    assert said in str(caught.value)
    assert LAYER in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "does not say of which kind"),
        ("no JSON", "does not say of which kind"),
        ("[" * 100_000, "does not say of which kind"),
        ({"_type": "Int8Tensor"}, "expected metadata of an Int8Tensor"),
        ({"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": []}, "expected metadata"),
        ({"_type": "Float8Tensor"}, "got its Float8Tensor: float8 products"),
        ({"_type": "Int4Tensor"}, "got its Int4Tensor"),
        ({"_type": "NVFP4Tensor"}, "microscaled"),
        (described(PARTS, new_key=1), "expected metadata"),
        (described(PARTS, block_size=[2, 8]), "got blocks of [2, 8]"),
        (described(PARTS, block_size=[1, 3]), "got blocks of [1, 3]"),
        (described(PARTS, block_size=[1, 0]), "got blocks of [1, 0]"),
        (described(PARTS, block_size="rows"), "got blocks of 'rows'"),
        (described(PARTS | {"act_pre_scale": QDATA}), "folded into the weights"),
        (described(PARTS, act_quant_kwargs={"_data": {}}), "expected act_quant_kwargs"),
        (described(PARTS, act_quant_kwargs=7), "expected act_quant_kwargs"),
    ],
)
def test_metadata_that_is_refused(
    metadata: Any, said: str, opened: Callable[..., Checkpoint]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(PARTS, metadata)
    assert said in str(caught.value)
    assert LAYER in str(caught.value)


def test_a_described_tensor_must_be_there(
    opened: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    opened(PARTS, described(PARTS))
    tensors = {f"{LAYER}._weight_{name}": tensor for name, tensor in PARTS.items()}
    texts = {f"{name}.weight": json.dumps(described(PARTS)) for name in (LAYER, "pooler.dense")}
    save_file(tensors, tmp_path / "model.safetensors", texts)
    with pytest.raises(CheckpointError, match=r"describes pooler\.dense\.weight"):
        open_checkpoint(tmp_path)


def test_each_shard_has_metadata_of_its_own(tmp_path: Path) -> None:
    modules = ("encoder.layer.0.output.dense", "encoder.layer.1.output.dense")
    weight_map = {}
    for number, module in enumerate(modules, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        tensors = {f"{module}._weight_{name}": tensor.clone() for name, tensor in PARTS.items()}
        save_file(tensors, tmp_path / file, {f"{module}.weight": json.dumps(described(PARTS))})
        weight_map |= dict.fromkeys(tensors, file)
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert set(open_checkpoint(tmp_path).linears) == set(modules)


@pytest.mark.parametrize(
    "change",
    [
        {"reduce_range": True},
        {"mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"}},
        {"granularity": {"_type": "PerTensor", "_data": {}}},
    ],
)
def test_inputs_without_a_counterpart_are_asked_for(
    change: dict[str, Any], opened: Callable[..., Checkpoint]
) -> None:
    inputs = {**INPUTS, "_data": INPUTS["_data"] | change}  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="--finalise activations=none"):
        opened(PARTS, described(PARTS, act_quant_kwargs=inputs))
    checkpoint = opened(
        PARTS, described(PARTS, act_quant_kwargs=inputs), finalise={"activations": "symmetric"}
    )
    assert checkpoint.linears[LAYER].activations == ActivationSpec("dynamic", "int8")


JUNK = (None, 0, -1, 2**70, True, "x", "PerRow", "SYMMETRIC", [], [1], {}, {"_type": "PerRow"})


def test_any_value_in_the_metadata_is_read_or_refused(opened: Callable[..., Checkpoint]) -> None:
    whole = described(PARTS, act_quant_kwargs=INPUTS)
    kwargs = ("_data", "act_quant_kwargs")
    places = [(key,) for key in whole] + [("_data", key) for key in whole["_data"]]
    places += [(*kwargs, "_data"), *((*kwargs, "_data", key) for key in INPUTS["_data"])]
    refused = 0
    for path in places:
        for junk in JUNK:
            damaged = json.loads(json.dumps(whole))
            parent = damaged
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = junk
            try:
                opened(PARTS, damaged)
            except CheckpointError:
                refused += 1
    assert refused > 80
