"""Tensors that no packer writes are refused with the tensor, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_runtime.formats import from_tensors, pack
from sparse_runtime.spec import LinearSpec, Structure, ValueSpec

Tensors = dict[str, Tensor]


def packed_tensors(structure: str, dtype: str) -> tuple[LinearSpec, Tensors]:
    """A 3x5 matrix: its last group, byte, block and nibble all hold padding."""
    spec = LinearSpec((3, 5), Structure.parse(structure), ValueSpec(dtype))
    weight = torch.zeros(3, 5)
    weight[0, 1], weight[0, 4], weight[1, 2], weight[2, 0] = 2, 3, -1, 1
    scales = torch.ones(3) if spec.values.is_integer else None
    packed = pack(weight.to(spec.values.torch_dtype), spec, scales)
    return spec, {name: tensor.clone() for name, tensor in packed.tensors().items()}


def put(name: str, index: int, value: float) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name].view(-1)[index] = value

    return damage


def replace(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return damage


DAMAGE = [
    # structure, values, what is done, what the message says
    ("dense", "fp32", put("values", 3, float("nan")), "values: expected finite"),
    ("dense", "fp16", put("values", 3, float("inf")), "values: expected finite"),
    ("dense", "bf16", put("values", 0, -0.0), r"values: expected zeros without a sign"),
    ("2:4", "fp32", put("values", 1, -0.0), r"values: expected zeros without a sign"),
    ("dense", "fp32", replace("values", Tensor.double), r"values: expected torch.float32 \[3, 5\]"),
    ("dense", "fp32", replace("values", Tensor.t), r"values: expected .*\[3, 5\], got .*\[5, 3\]"),
    ("dense", "int4", put("values", 2, 0x10), "values: expected the unused last nibble to be 0"),
    ("dense", "int8", put("scales", 1, float("nan")), "scales: expected finite numbers above 0"),
    ("dense", "int8", put("scales", 1, 0), "scales: expected finite numbers above 0"),
    ("dense", "int8", put("scales", 1, -1), "scales: expected finite numbers above 0"),
    ("dense", "int8", replace("scales", lambda s: s[:2]), r"scales: expected .*\[3\], got .*\[2\]"),
    ("unstructured", "fp32", put("bitmask", 0, 0xB2), "bitmask: a bit behind input 4 is set"),
    ("unstructured", "fp32", put("bitmask", 0, 0x13), r"values: expected .*\[5\], got .*\[4\]"),
    ("unstructured", "fp32", put("values", 2, 0), "values: a stored value is 0"),
    ("unstructured", "int4", put("values", 0, 0x02), "values: a stored value is 0"),
    ("unstructured", "fp32", replace("bitmask", Tensor.t), "bitmask: expected torch.uint8"),
    ("2:4", "fp32", put("positions", 0, 0xFF), "positions: expected ascending positions below 4"),
    # 3 of each group of 6 in 3 bits: position 7 does not exist.
    ("3:6", "fp32", put("positions", 0, 0xC8), "positions: expected ascending positions below 6"),
    ("3:6", "fp32", put("positions", 1, 0xFE), "positions: a bit behind the last position is set"),
    # Row 1, group 0 holds one nonzero at 2 and a zero at 0; the zero moves to 1.
    ("2:4", "fp32", put("positions", 1, 0x49), "positions: a stored zero is not at the lowest"),
    # Row 0, group 1 covers inputs 4 to 7 of 5: the second slot lies behind the last input.
    ("2:4", "fp32", put("values", 3, 1), "values: a value behind input 4 is not 0"),
    ("block:2x2", "fp32", put("bitmask", 0, 0x0F), "bitmask: a bit behind block column 2"),
    ("block:2x2", "fp32", put("bitmask", 0, 0x05), r"values: expected .*\[3, 4\], got .*\[4, 4\]"),
    ("block:2x2", "fp32", put("values", 1, 0), "values: a stored block is all zero"),
    # Block (0, 2) covers inputs 4 and 5 of 5.
    ("block:2x2", "fp32", put("values", 9, 1), "values: a value in the padding of an edge block"),
    # Block (1, 0) covers rows 2 and 3 of 3.
    ("block:2x2", "fp32", put("values", 14, 1), "values: a value in the padding of an edge block"),
    ("block:1x3", "int4", put("values", 1, 0x10), "values: expected the unused last nibble to be"),
]


@pytest.mark.parametrize(("structure", "dtype", "damage", "message"), DAMAGE)
def test_damaged_tensors_are_refused(
    structure: str, dtype: str, damage: Callable[[Tensors], None], message: str
) -> None:
    spec, tensors = packed_tensors(structure, dtype)
    from_tensors(spec, tensors)  # sound before the damage
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        from_tensors(spec, tensors)


def grouped_tensors() -> tuple[LinearSpec, Tensors]:
    """A 3x5 matrix in groups of 2 inputs, so 9 scales and 9 zero points."""
    values = ValueSpec.parse("int8", "group:2", zero_points=True)
    spec = LinearSpec((3, 5), Structure("dense"), values)
    zeros = torch.arange(9, dtype=torch.int8)
    packed = pack(torch.ones(3, 5, dtype=torch.int8), spec, torch.ones(9), zeros)
    return spec, {name: tensor.clone() for name, tensor in packed.tensors().items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace("zero_points", lambda z: z[:8]), r"zero_points: expected torch.int8 \[9\], got"),
        (replace("zero_points", Tensor.int), "zero_points: expected torch.int8 .* torch.int32"),
        (replace("zero_points", lambda z: z.view(3, 3)), r"zero_points: .* got .*\[3, 3\]"),
        (replace("scales", lambda s: s[:3]), r"scales: expected .*\[9\], got .*\[3\]"),
        (put("scales", 8, float("inf")), "scales: expected finite numbers above 0"),
        (lambda tensors: tensors.pop("zero_points"), r"missing tensors \['zero_points'\]"),
    ],
)
def test_damaged_groups_and_zero_points_are_refused(
    damage: Callable[[Tensors], None], message: str
) -> None:
    spec, tensors = grouped_tensors()
    from_tensors(spec, tensors)  # sound before the damage
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        from_tensors(spec, tensors)


def test_zero_points_that_the_description_does_not_name_are_refused() -> None:
    spec, tensors = packed_tensors("dense", "int8")
    with pytest.raises(ValueError, match=r"unknown tensors \['zero_points'\]"):
        from_tensors(spec, tensors | {"zero_points": torch.zeros(3, dtype=torch.int8)})


@pytest.mark.parametrize("structure", ["dense", "unstructured", "2:4", "block:2x2"])
def test_missing_and_unknown_tensors_are_refused(structure: str) -> None:
    spec, tensors = packed_tensors(structure, "int8")
    for name in list(tensors):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        with pytest.raises(ValueError, match=rf"missing tensors \['{name}'\]"):
            from_tensors(spec, rest)
    with pytest.raises(ValueError, match=r"unknown tensors \['zeros'\]"):
        from_tensors(spec, tensors | {"zeros": torch.zeros(1)})
