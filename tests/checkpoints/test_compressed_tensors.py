"""compressed-tensors in every format: opened exactly, in both spellings and composed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from sparse_runtime.spec import ActivationSpec, ValueSpec
from sparse_runtime.testing.exporters.compressed_tensors import (
    DYNAMIC,
    STATIC,
    export_bitmask,
    export_integers,
    is_layer_weight,
    pack_int32,
)
from sparse_runtime.tools.convert import convert

CONFIG = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}
LAYER = "bert.encoder.layer.0.output.dense"


@pytest.fixture
def pruned(untied: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with 2:4 layers, some of whose groups hold fewer than two nonzeros."""
    tensors = {name: tensor.clone() for name, tensor in untied.items()}
    for name, tensor in tensors.items():
        if is_layer_weight(name, tensor):
            groups = tensor.unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().topk(2, dim=2, largest=False).indices, 0)
            groups[0, 0] = 0
    return tensors


@pytest.fixture
def opened(write: Callable[..., Path]) -> Callable[..., Checkpoint]:
    def open_exported(
        exported: tuple[dict[str, Tensor], dict[str, Any]], **arguments: Any
    ) -> Checkpoint:
        tensors, section = exported
        directory = write(tensors, config={**CONFIG, "quantization_config": section})
        return open_checkpoint(directory, **arguments)

    return open_exported


def refusal(opened: Callable[..., Checkpoint], exported: Any, **arguments: Any) -> str:
    """The error of opening, or of reading what was opened."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = opened(exported, **arguments)
        for name in checkpoint.tensors:
            checkpoint.tensors[name]
        for linear in checkpoint.linears.values():
            linear.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ({}, ValueSpec("int8")),
        ({"symmetric": False}, ValueSpec("int8", zero_points=True)),
        ({"bits": 4, "group_size": 16}, ValueSpec("int4", "group", group_cols=16)),
        ({"packed": True}, ValueSpec("int8")),
        # 4 rows of zero points lie in each int32.
        ({"packed": True, "symmetric": False}, ValueSpec("int8", zero_points=True)),
        (
            {"packed": True, "bits": 4, "group_size": 8, "symmetric": False},
            ValueSpec("int4", "group", zero_points=True, group_cols=8),
        ),
    ],
)
def test_integers_stay_what_they_are(
    arguments: dict[str, Any],
    values: ValueSpec,
    opened: Callable[..., Checkpoint],
    untied: dict[str, Tensor],
) -> None:
    checkpoint = opened(export_integers(untied, **arguments))
    plain, _ = export_integers(untied, **{**arguments, "packed": False})
    assert len(checkpoint.linears) == 12
    for module, linear in checkpoint.linears.items():
        stored = linear.load()
        assert linear.values == values
        assert torch.equal(stored.weight, plain[f"{module}.weight"])
        assert torch.equal(stored.scales, plain[f"{module}.weight_scale"].flatten())
        if values.zero_points:
            zero_points = plain[f"{module}.weight_zero_point"].flatten()
            assert stored.zero_points is not None
            assert torch.equal(stored.zero_points, zero_points)
        assert linear.activations == ActivationSpec("dynamic", "int8", narrow_range=False)
        assert linear.nbytes < untied[f"{module}.weight"].nbytes / 2
    assert checkpoint.layout.startswith("compressed-tensors in ")
    (step,) = checkpoint.steps
    assert step.startswith("12 modules stay integers: ")
    assert "quantization_config" not in checkpoint.config


def test_static_inputs_and_outputs(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied, inputs={**STATIC, "symmetric": False})
    section["config_groups"]["group_0"]["output_activations"] = STATIC
    for name in [name for name in tensors if name.endswith("input_scale")]:
        module = name.removesuffix(".input_scale")
        tensors[f"{module}.input_zero_point"] = torch.tensor([-7], dtype=torch.int8)
        tensors[f"{module}.output_scale"] = torch.tensor([0.25])
    linear = opened((tensors, section)).linears[LAYER]
    assert linear.activations == ActivationSpec("static", "int8", float(torch.tensor(0.05)), -7)
    assert linear.outputs == ActivationSpec("static", "int8", 0.25, 0)


@pytest.mark.parametrize("two_of_four", [False, True])
def test_bitmasks_are_undone(
    two_of_four: bool, opened: Callable[..., Checkpoint], pruned: dict[str, Tensor]
) -> None:
    checkpoint = opened(export_bitmask(pruned, two_of_four=two_of_four))
    assert {*checkpoint.tensors, *checkpoint.aliases} == set(pruned)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.tensors[name], pruned[name]), name
    assert checkpoint.steps == ("weight = compressed at the places of bitmask in 12 modules",)


def test_bitmasks_of_every_tensor_are_undone(
    opened: Callable[..., Checkpoint], pruned: dict[str, Tensor]
) -> None:
    zeros = {f"{LAYER}.bias": torch.zeros(32)}
    positions = {"bert.embeddings.position_ids": torch.arange(16)[None]}
    tensors, section = export_bitmask(pruned | zeros | positions, old_names=True)
    assert tensors[f"{LAYER}.bias.bitmask"].shape == (4,)
    assert tensors[f"{LAYER}.bias.row_offsets"].shape == ()
    assert all(name.endswith(("shape", "compressed", "bitmask", "offsets")) for name in tensors)
    checkpoint = opened((tensors, section))
    assert {*checkpoint.tensors, *checkpoint.aliases} == set(pruned)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.tensors[name], (pruned | zeros)[name]), name
    assert checkpoint.dropped == dict.fromkeys(positions, "transformers rebuilds it")
    count = len(pruned) + 1
    assert checkpoint.steps == (f"tensor = compressed at the places of bitmask in {count} tensors",)


@pytest.mark.parametrize("packed", [False, True])
def test_integers_and_scales_inside_of_bitmasks_of_every_tensor(
    packed: bool, opened: Callable[..., Checkpoint], pruned: dict[str, Tensor]
) -> None:
    integers, section = export_integers(pruned, packed=packed, symmetric=False)
    plain = opened((integers, section)).linears[LAYER].load()
    linear = opened(export_bitmask(integers, section, old_names=True)).linears[LAYER].load()
    assert torch.equal(linear.weight, plain.weight)
    assert torch.equal(linear.scales, plain.scales)
    assert linear.zero_points is not None and plain.zero_points is not None
    assert torch.equal(linear.zero_points, plain.zero_points)


@pytest.mark.parametrize("version", [None, "0.8.1"])
@pytest.mark.parametrize("packed", [False, True])
def test_zero_points_that_old_versions_leave_out_are_0(
    packed: bool, version: str | None, opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    inputs = {**STATIC, "symmetric": False}
    tensors, section = export_integers(untied, packed=packed, symmetric=False, inputs=inputs)
    left_out = [n for n in tensors if n.startswith(LAYER) and n.endswith("zero_point")]
    assert len(left_out) == 2
    fewer = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    assert "zero_point is missing" in refusal(opened, (fewer, section))
    linears = opened((fewer, section | {"version": version})).linears
    whole = opened((tensors, section)).linears
    linear, other = linears.pop(LAYER), whole[LAYER]
    assert linear.values == ValueSpec("int8")
    assert linear.load().zero_points is None
    assert torch.equal(linear.load().weight, other.load().weight)
    assert linear.activations is not None and linear.activations.zero_point == 0
    assert all(kept.values.zero_points for kept in linears.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bitmasks_keep_the_dtype_of_their_values(
    dtype: torch.dtype, opened: Callable[..., Checkpoint], pruned: dict[str, Tensor]
) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in pruned.items()}
    checkpoint = opened(export_bitmask(halves))
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], halves[f"{LAYER}.weight"])


def test_a_bitmask_may_hold_columns_that_no_byte_ends_with(
    opened: Callable[..., Checkpoint],
) -> None:
    weight = torch.tensor([[0.0, 2, 0, 4, 5, 0, 0, 8, 9, 0, 11], [0.0] * 11])
    checkpoint = opened(export_bitmask({f"{LAYER}.weight": weight}))
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], weight)


@pytest.mark.parametrize("two_of_four", [False, True])
def test_integers_inside_of_bitmasks(
    two_of_four: bool,
    opened: Callable[..., Checkpoint],
    pruned: dict[str, Tensor],
    write: Callable[..., Path],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    dense, section = export_integers(pruned)
    exported = export_bitmask(dense, section, two_of_four=two_of_four)
    checkpoint = opened(exported)
    assert torch.equal(checkpoint.linears[LAYER].load().weight, dense[f"{LAYER}.weight"])
    assert len(checkpoint.steps) == 2
    directory = write(exported[0], config={**model_config, "quantization_config": exported[1]})
    report = convert(directory, tmp_path / "packed", progress=False)
    assert {str(layer.structure) for layer in report.layers} == {"2:4"}


def test_float8_is_dequantized_and_its_activations_are_asked_for(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied, inputs={**DYNAMIC, "type": "float"})
    section |= {"format": "float-quantized"}
    section["config_groups"]["group_0"]["weights"]["type"] = "float"
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        weight = f"{name.removesuffix('_scale')}"
        tensors[weight] = tensors[weight].to(torch.float8_e4m3fn)
    message = refusal(opened, (tensors, section))
    assert "--finalise activations=none" in message
    assert "dynamic, float8" in message
    checkpoint = opened((tensors, section), finalise={"activations": "none"})
    assert not checkpoint.linears
    expected = tensors[f"{LAYER}.weight"].float() * tensors[f"{LAYER}.weight_scale"]
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], expected)
    assert "expected one of none" in refusal(
        opened, (tensors, section), finalise={"activations": "dynamic"}
    )


@pytest.mark.parametrize(
    "inputs",
    [
        {**DYNAMIC, "symmetric": False},
        {**DYNAMIC, "strategy": "tensor"},
        {**DYNAMIC, "num_bits": 4},
        {**DYNAMIC, "scale_dtype": "torch.bfloat16"},
        {**DYNAMIC, "strategy": "group", "group_size": 16},
    ],
)
def test_activations_without_a_counterpart_are_asked_for(
    inputs: dict[str, Any], opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    exported = export_integers(untied, inputs=inputs)
    assert "--finalise activations=none" in refusal(opened, exported)
    for choice, spec in [
        ("none", None),
        ("dynamic", ActivationSpec("dynamic", "uint8")),
        ("symmetric", ActivationSpec("dynamic", "int8")),
    ]:
        checkpoint = opened(exported, finalise={"activations": choice})
        assert {linear.activations for linear in checkpoint.linears.values()} == {spec}


def test_scales_that_are_left_out_are_listed(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied, inputs=STATIC)
    section["config_groups"]["group_0"]["output_activations"] = DYNAMIC
    checkpoint = opened((tensors, section), finalise={"activations": "none"})
    assert checkpoint.dropped[f"{LAYER}.input_scale"] == "activations=none was asked for"
    assert checkpoint.linears[LAYER].activations is None


def test_a_section_that_only_tells_of_sparsity_changes_nothing(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    sparsity = {"format": "dense", "global_sparsity": 0.5, "sparsity_structure": "2:4"}
    section = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    checkpoint = opened((untied, section))
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], untied[f"{LAYER}.weight"])
    # Beside integers it is no more than that either.
    tensors, section = export_integers(untied)
    assert opened((tensors, section | {"sparsity_config": sparsity})).linears


def test_other_sections_that_versions_have_used(
    write: Callable[..., Path], pruned: dict[str, Tensor]
) -> None:
    tensors, section = export_bitmask(pruned)
    for key, value in [
        ("quantization_config", section | {"quant_method": "sparseml"}),
        ("compression_config", {"sparsity_config": section["sparsity_config"]}),
        ("sparsity_config", section["sparsity_config"]),
    ]:
        checkpoint = open_checkpoint(write(tensors, config={**CONFIG, key: value}))
        assert key in checkpoint.recognised[0].why
        assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], pruned[f"{LAYER}.weight"])


def test_tables_that_are_quantized_become_floats(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied, inputs=None)
    table = "bert.embeddings.word_embeddings"
    integers = torch.arange(50 * 32).reshape(50, 32).remainder(255).sub(127).to(torch.int8)
    tensors |= {f"{table}.weight": integers, f"{table}.weight_scale": torch.full((50, 1), 0.5)}
    section["config_groups"]["group_0"]["targets"] = ["Linear", "Embedding"]
    checkpoint = opened((tensors, section))
    assert torch.equal(checkpoint.tensors[f"{table}.weight"], integers.float() * 0.5)
    assert checkpoint.steps[1] == "weight = value x weight_scale, in float32, in 1 modules"


def test_zeros_that_say_nothing_are_dropped(
    opened: Callable[..., Checkpoint], untied: dict[str, Tensor]
) -> None:
    tensors, section = export_integers(untied, packed=True, group_size=8, inputs=None)
    for number, name in enumerate([name for name in tensors if name.endswith("weight_scale")]):
        module, cols = (
            name.removesuffix(".weight_scale"),
            untied[name.removesuffix("_scale")].shape[1],
        )
        tensors[f"{module}.weight_zero_point"] = torch.zeros(1, dtype=torch.int8)
        order = torch.arange(cols) // 8 if number % 2 else torch.full((cols,), -1)
        tensors[f"{module}.weight_g_idx"] = order.to(torch.int32)
    checkpoint = opened((tensors, section))
    assert len(checkpoint.linears) == 12
    assert len(checkpoint.dropped) == 24


def test_packing_puts_the_first_value_lowest() -> None:
    assert pack_int32(torch.tensor([[-8, -7, 7]], dtype=torch.int8), 4).tolist() == [[0xF10]]
    assert pack_int32(torch.tensor([[0, 0, 0, 127]], dtype=torch.int8), 8).tolist() == [[-0x7F7F80]]
