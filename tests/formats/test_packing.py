"""Packing is exact and canonical for every structure, value type, scale and memory layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_runtime.formats import cast_values, from_tensors, pack, project
from sparse_runtime.formats.detect import packed_bytes
from sparse_runtime.spec import INTEGER_RANGES, VALUE_DTYPES, LinearSpec, Structure, ValueSpec


@dataclass
class Case:
    """A matrix that fits its description, and the same matrix laid out otherwise in memory."""

    spec: LinearSpec
    weight: Tensor
    scales: Tensor | None
    zero_points: Tensor | None
    elsewhere: Tensor


STRUCTURES = st.one_of(
    st.sampled_from(["dense", "unstructured", "2:4", "1:4", "4:8"]),
    st.integers(2, 16).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: f"{n}:{m}")),
    # Small blocks divide the matrices or do not; the large one is mostly padding.
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda rc: f"block:{rc[0]}x{rc[1]}"),
    st.just("block:64x64"),
)
SCALES = st.one_of(
    st.sampled_from(["tensor", "row"]),
    st.integers(1, 30).map("chunk:{}".format),
    # Groups divide the rows or do not; the longest are longer than a row.
    st.integers(1, 50).map("group:{}".format),
)
LAYOUTS = ("transposed", "every second element", "flipped view of a larger matrix")


def laid_out(weight: Tensor, layout: str) -> Tensor:
    """Equal to ``weight``, not contiguous."""
    if layout == "transposed":
        return weight.t().contiguous().t()
    if layout == "every second element":
        return weight.repeat_interleave(2, 1)[:, ::2]
    return torch.nn.functional.pad(weight, (3, 2, 1, 4))[1:-4, 3:-2]


def random_matrix(shape: tuple[int, int], values: ValueSpec, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if values.is_integer:
        low, high = INTEGER_RANGES[values.dtype]
        weight = torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)
    else:
        weight = torch.randn(shape, generator=generator).to(values.torch_dtype)
    return weight * (torch.rand(shape, generator=generator) < density)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    structure = Structure.parse(draw(STRUCTURES))
    values = ValueSpec.parse(draw(st.sampled_from(VALUE_DTYPES)), draw(SCALES))
    if structure.kind == "dense" and values.is_integer:
        values = replace(values, zero_points=draw(st.booleans()))
    shape = (draw(st.integers(1, 20)), draw(st.integers(1, 40)))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    weight = project(random_matrix(shape, values, density, draw(st.integers(0, 2**32))), structure)
    count = values.scale_count(*shape)
    scales = torch.arange(1, count + 1) / 7 if values.is_integer else None
    zero_points = (torch.arange(count) * 37 - 128).to(torch.int8) if values.zero_points else None
    spec = LinearSpec(shape, structure, values)
    elsewhere = laid_out(weight, draw(st.sampled_from(LAYOUTS)))
    return Case(spec, weight, scales, zero_points, elsewhere)


def assert_same_bytes(a: Tensor, b: Tensor) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@settings(max_examples=400)
@given(cases())
def test_packing_is_exact_canonical_and_as_large_as_predicted(case: Case) -> None:
    packed = pack(case.weight, case.spec, case.scales, case.zero_points)
    unpacked = packed.unpack()
    assert unpacked.dtype == case.spec.values.torch_dtype
    assert unpacked.is_contiguous()
    assert torch.equal(unpacked, case.weight)
    if unpacked.is_floating_point():
        assert not bool((torch.signbit(unpacked) & (unpacked == 0)).any())

    again = from_tensors(case.spec, packed.tensors())
    other = pack(case.elsewhere, case.spec, case.scales, case.zero_points)
    assert set(packed.tensors()) == set(packed.tensor_names(case.spec))
    for name, tensor in packed.tensors().items():
        assert_same_bytes(tensor, again.tensors()[name])
        assert_same_bytes(tensor, other.tensors()[name])

    size = packed.size()
    stored = sum(tensor.nbytes for tensor in packed.tensors().values())
    assert size.total == stored == size.values + size.index + size.scales + size.zero_points
    assert size.zero_points == (case.spec.scale_count if case.zero_points is not None else 0)
    nonzero = case.weight != 0
    assert packed_bytes(nonzero, case.spec.structure, case.spec.values) == stored


@settings(max_examples=100)
@given(cases())
def test_dequantizing_takes_off_zero_points_and_multiplies_by_scales(case: Case) -> None:
    packed = pack(case.weight, case.spec, case.scales, case.zero_points)
    expected = case.weight.double()
    values, (rows, cols) = case.spec.values, case.spec.shape
    if case.scales is not None:
        index = torch.zeros(rows, cols, dtype=torch.int64)
        for row in range(rows):
            for col in range(cols):
                index[row, col] = {
                    "tensor": 0,
                    "row": row,
                    "chunk": row // max(values.chunk_rows, 1),
                    "group": row * -(-cols // (values.group_cols or 1))
                    + col // (values.group_cols or 1),
                }[values.granularity]
        if case.zero_points is not None:
            expected = expected - case.zero_points[index].double()
        expected = expected * case.scales[index].double()
    assert torch.equal(packed.dequantize(torch.float64), expected)


ALL_STRUCTURES = (
    "dense",
    "unstructured",
    "2:4",
    "1:3",
    "8:16",
    "block:4x1",
    "block:1x4",
    "block:3x5",
)


def make_spec(shape: tuple[int, int], structure: str, dtype: str) -> LinearSpec:
    return LinearSpec(shape, Structure.parse(structure), ValueSpec(dtype))


def ones_for(spec: LinearSpec) -> Tensor | None:
    return torch.ones(spec.scale_count) if spec.values.is_integer else None


@pytest.mark.parametrize("dtype", VALUE_DTYPES)
@pytest.mark.parametrize("structure", ALL_STRUCTURES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1), (7, 11), (8, 16)])
def test_hazardous_matrices_come_back(shape: tuple[int, int], structure: str, dtype: str) -> None:
    spec = make_spec(shape, structure, dtype)
    torch_dtype = spec.values.torch_dtype
    full = torch.ones(shape, dtype=torch_dtype)  # every magnitude ties
    first_row, last_row, corner = torch.zeros_like(full), torch.zeros_like(full), full * 0
    first_row[0], last_row[-1], corner[-1, -1] = 1, 1, 1
    for weight in (full, full * 0, first_row, last_row, corner):
        fitting = project(weight, spec.structure)
        packed = pack(fitting, spec, ones_for(spec))
        assert torch.equal(packed.unpack(), fitting)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("structure", ALL_STRUCTURES)
def test_a_negative_zero_comes_back_as_zero(structure: str, dtype: str) -> None:
    spec = make_spec((4, 16), structure, dtype)
    weight = torch.zeros(4, 16, dtype=spec.values.torch_dtype)
    weight[0, 0] = 2
    packed = pack(torch.where(weight == 0, -weight, weight), spec)
    for name, tensor in packed.tensors().items():
        assert_same_bytes(tensor, pack(weight, spec).tensors()[name])


@pytest.mark.parametrize("structure", ALL_STRUCTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_subnormals_are_values_like_any_other(structure: str, dtype: str) -> None:
    spec = make_spec((3, 16), structure, dtype)
    weight = torch.zeros(3, 16, dtype=spec.values.torch_dtype)
    weight[1, 5] = torch.finfo(weight.dtype).smallest_normal / 2
    assert weight[1, 5] != 0
    assert torch.equal(pack(weight, spec).unpack(), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("structure", ALL_STRUCTURES)
def test_what_is_not_finite_is_refused_by_position(structure: str, bad: float) -> None:
    weight = torch.zeros(4, 16)
    weight[2, 3] = bad
    with pytest.raises(ValueError, match=r"weight\[2, 3\] is"):
        pack(weight, make_spec((4, 16), structure, "fp32"))


def test_a_matrix_that_is_not_of_the_structure_is_refused_by_position() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 4:7] = 1
    with pytest.raises(ValueError, match=r"weight\[1, 4:8\] has more than 2 nonzeros"):
        pack(weight, make_spec((3, 8), "2:4", "fp32"))


def test_inputs_that_do_not_fit_the_description_are_refused() -> None:
    int8, int4 = make_spec((2, 3), "dense", "int8"), make_spec((2, 3), "dense", "int4")
    weight, scales = torch.ones(2, 3, dtype=torch.int8), torch.ones(2)
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 3\), got \(3, 2\)"):
        pack(weight.t(), int8, scales)
    with pytest.raises(TypeError, match=r"packed from torch\.int8, got torch\.float32"):
        pack(weight.float(), int8, scales)
    with pytest.raises(ValueError, match="scales: int8 values need them"):
        pack(weight, int8)
    with pytest.raises(ValueError, match="scales: fp32 values have none"):
        pack(weight.float(), make_spec((2, 3), "dense", "fp32"), scales)
    with pytest.raises(ValueError, match=r"scales: expected torch\.float32 \[2\]"):
        pack(weight, int8, torch.ones(3))
    with pytest.raises(ValueError, match=r"scales: expected torch\.float32 \[2\]"):
        pack(weight, int8, scales.double())
    with pytest.raises(ValueError, match=r"int4 values lie in \[-8, 7\]"):
        pack(weight * 8, int4, scales)
    with_zeros = LinearSpec((2, 3), Structure("dense"), ValueSpec("int8", zero_points=True))
    zeros = torch.zeros(2, dtype=torch.int8)
    with pytest.raises(ValueError, match="zero_points: the description asks for them, got none"):
        pack(weight, with_zeros, scales)
    with pytest.raises(ValueError, match="zero_points: the description has none, got some"):
        pack(weight, int8, scales, zeros)
    with pytest.raises(ValueError, match=r"zero_points: expected torch\.int8 \[2\], got .* \[1\]"):
        pack(weight, with_zeros, scales, zeros[:1])
    with pytest.raises(ValueError, match=r"zero_points: expected torch\.int8 .* torch\.int32"):
        pack(weight, with_zeros, scales, zeros.int())
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scales: expected finite numbers above 0"):
            pack(weight, int8, torch.tensor([1.0, bad]))


def test_a_chunk_of_more_rows_than_there_are_costs_nothing() -> None:
    # 99 999 999 rows a chunk would take 400 MB if scales were repeated before they are cut.
    values = ValueSpec.parse("int8", "chunk:99999999")
    weight = torch.ones(2, 3, dtype=torch.int8)
    packed = pack(weight, LinearSpec((2, 3), Structure("dense"), values), torch.tensor([0.5]))
    assert packed.row_scales().tolist() == [0.5, 0.5]


def test_a_group_of_more_inputs_than_there_are_costs_nothing() -> None:
    values = ValueSpec.parse("int8", "group:99999999", zero_points=True)
    weight = torch.ones(2, 3, dtype=torch.int8)
    spec = LinearSpec((2, 3), Structure("dense"), values)
    zeros = torch.tensor([1, -127], dtype=torch.int8)
    packed = pack(weight, spec, torch.tensor([0.5, 0.25]), zeros)
    assert packed.dequantize().tolist() == [[0.0] * 3, [32.0] * 3]
    quantized, scales = cast_values(weight.float(), ValueSpec.parse("int8", "group:99999999"))
    assert scales is not None
    assert (scales.shape, int(quantized.min())) == ((2,), 127)


def test_rows_with_several_scales_have_no_scale_of_the_row() -> None:
    spec = LinearSpec((2, 3), Structure("dense"), ValueSpec.parse("int8", "group:2"))
    packed = pack(torch.ones(2, 3, dtype=torch.int8), spec, torch.arange(1.0, 5.0))
    with pytest.raises(ValueError, match="'group:2': expected one scale a row"):
        packed.row_scales()
    scales, zero_points = packed.scale_columns()
    assert (scales.tolist(), zero_points.tolist()) == ([[1, 2], [3, 4]], [[0, 0], [0, 0]])


def test_zero_points_by_row_and_by_column() -> None:
    values = ValueSpec.parse("int8", "chunk:2", zero_points=True)
    spec = LinearSpec((3, 2), Structure("dense"), values)
    zeros = torch.tensor([-128, 127], dtype=torch.int8)
    packed = pack(torch.zeros(3, 2, dtype=torch.int8), spec, torch.tensor([1.0, 2.0]), zeros)
    assert packed.row_zero_points().tolist() == [-128, -128, 127]
    assert packed.scale_columns()[1].tolist() == [[-128], [-128], [127]]
    assert packed.dequantize().tolist() == [[128, 128], [128, 128], [-254, -254]]
    symmetric = pack(
        torch.zeros(3, 2, dtype=torch.int8), make_spec((3, 2), "dense", "int8"), torch.ones(3)
    )
    assert symmetric.row_zero_points().tolist() == [0, 0, 0]


def test_moving_keeps_every_tensor() -> None:
    weight = project(torch.randn(4, 8), Structure.parse("2:4"))
    packed = pack(weight, make_spec((4, 8), "2:4", "fp32"))
    moved = packed.to("cpu")
    assert moved.spec == packed.spec
    assert torch.equal(moved.unpack(), weight)
