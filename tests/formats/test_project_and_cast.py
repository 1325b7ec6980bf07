"""Projection keeps the largest and no more; casting rounds to nearest and keeps zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_runtime.formats import cast_values, parse_prune, project
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.spec import INTEGER_RANGES, Structure, ValueSpec

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 33))
SPARSITIES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999])
SEEDS = st.integers(0, 2**32)


def normal(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    SHAPES,
    st.integers(2, 16).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))),
    SEEDS,
)
def test_n_m_keeps_the_n_largest_of_each_group(
    shape: tuple[int, int], nm: tuple[int, int], seed: int
) -> None:
    (n, m), weight = nm, normal(shape, seed)
    structure = Structure("nm", n=n, m=m)
    fitted = project(weight, structure)
    for start in range(0, shape[1], m):
        before, after = weight[:, start : start + m].abs(), fitted[:, start : start + m].abs()
        kept = min(n, before.shape[1])
        assert torch.equal((after != 0).sum(1), torch.full((shape[0],), kept))
        assert torch.equal(after.sort(descending=True).values[:, :kept], before.topk(kept).values)
    assert torch.equal(project(fitted, structure), fitted)


@given(SHAPES, SPARSITIES, SEEDS)
def test_unstructured_zeroes_the_exact_count_of_smallest(
    shape: tuple[int, int], sparsity: float, seed: int
) -> None:
    weight, structure = normal(shape, seed), Structure("unstructured")
    fitted = project(weight, structure, sparsity)
    dropped = round(sparsity * weight.numel())
    assert int((fitted == 0).sum()) == dropped
    assert torch.equal(fitted[fitted != 0], weight[fitted != 0])
    if 0 < dropped < weight.numel():
        assert weight[fitted == 0].abs().max() <= fitted[fitted != 0].abs().min()
    assert torch.equal(project(fitted, structure, sparsity), fitted)


@given(SHAPES, st.integers(1, 7), st.integers(1, 7), SPARSITIES, SEEDS)
def test_block_zeroes_the_exact_count_of_weakest_blocks(
    shape: tuple[int, int], rows: int, cols: int, sparsity: float, seed: int
) -> None:
    weight, structure = normal(shape, seed), Structure("block", rows=rows, cols=cols)
    fitted = project(weight, structure, sparsity)
    norms = to_blocks(weight, structure).double().norm(dim=-1).flatten()
    kept = to_blocks(fitted, structure).any(-1).flatten()
    assert int((~kept).sum()) == round(sparsity * norms.numel())
    if bool(kept.any()) and not bool(kept.all()):
        assert norms[~kept].max() <= norms[kept].min()
    assert torch.equal(fitted[fitted != 0], weight[fitted != 0])
    assert torch.equal(project(fitted, structure, sparsity), fitted)


def test_ties_keep_the_lower_index() -> None:
    ones = torch.ones(2, 8)
    assert project(ones, Structure.parse("2:4"))[0].tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert project(-ones, Structure.parse("unstructured"), 0.5).tolist() == [[-1] * 8, [0] * 8]
    # Long enough for a sort that is not stable to show.
    many = project(torch.ones(1, 5000), Structure.parse("unstructured"), 0.9)
    assert many[0].nonzero().flatten().tolist() == list(range(500))
    blocks = project(ones, Structure.parse("block:1x4"), 0.75)
    assert blocks.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8]


def test_the_smallest_integer_is_the_largest_magnitude() -> None:
    weight = torch.tensor([[-128, 5, 4, 127]], dtype=torch.int8)
    assert project(weight, Structure.parse("1:4")).tolist() == [[-128, 0, 0, 0]]
    assert project(weight, Structure.parse("unstructured"), 0.5).tolist() == [[-128, 0, 0, 127]]


@pytest.mark.parametrize("structure", ["dense", "unstructured", "block:2x2"])
def test_structures_that_hold_any_matrix_change_nothing_unasked(structure: str) -> None:
    weight = normal((5, 7), 0)
    fitted = project(weight, Structure.parse(structure))
    assert torch.equal(fitted, weight)
    assert fitted.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(
    ("structure", "sparsity"),
    [
        ("unstructured", 1.0),
        ("block:2x2", -0.1),
        ("unstructured", float("nan")),
        ("2:4", 0.5),
        ("dense", 0.5),
    ],
)
def test_a_sparsity_that_means_nothing_is_refused(structure: str, sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"sparsity {sparsity}"):
        project(torch.ones(4, 4), Structure.parse(structure), sparsity)


@pytest.mark.parametrize(
    ("text", "structure", "sparsity"),
    [
        ("2:4", "2:4", None),
        ("unstructured@0.9", "unstructured", 0.9),
        ("block:32x32@0", "block:32x32", 0.0),
    ],
)
def test_prune_strings_are_read(text: str, structure: str, sparsity: float | None) -> None:
    assert parse_prune(text) == (Structure.parse(structure), sparsity)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dense",
        "dense@0.5",
        "2:4@0.5",
        "unstructured",
        "unstructured@",
        "unstructured@1",
        "unstructured@1.5",
        "unstructured@.5.5",
        "unstructured@-0.5",
        "block:4x1",
        "magnitude@0.5",
    ],
)
def test_bad_prune_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"prune|structure"):
        parse_prune(text)


@pytest.mark.parametrize("text", [0.5, None, "0.5", "90%", "unstructured@nan", "unstructured"])
def test_what_prune_takes_is_listed(text: Any) -> None:
    with pytest.raises(ValueError, match=r"^prune .*: expected 'N:M', 'unstructured@SPARSITY' or"):
        parse_prune(text)


@given(
    SHAPES,
    st.sampled_from(sorted(INTEGER_RANGES)),
    st.one_of(
        st.sampled_from(["tensor", "row"]),
        st.integers(1, 15).map("chunk:{}".format),
        st.integers(1, 15).map("group:{}".format),
    ),
    st.floats(-44, 37),  # from where everything is subnormal, or rounds to zero
    SEEDS,
)
def test_integers_lie_within_half_a_scale(
    shape: tuple[int, int], dtype: str, scales_text: str, exponent: float, seed: int
) -> None:
    values = ValueSpec.parse(dtype, scales_text)
    weight = project(normal(shape, seed) * 10**exponent, Structure("unstructured"), 0.3)
    weight[0] = 0  # a row without a nonzero
    weight = torch.nan_to_num(weight, posinf=3e38, neginf=-3e38)
    quantized, scales = cast_values(weight, values)
    assert scales is not None
    assert quantized.dtype == torch.int8
    assert scales.shape == (values.scale_count(*shape),)
    assert bool((torch.isfinite(scales) & (scales > 0)).all())
    assert bool((quantized[weight == 0] == 0).all())
    limit = INTEGER_RANGES[dtype][1]
    assert int(quantized.abs().max()) <= limit
    group = {"tensor": shape[0], "row": 1, "group": 1}.get(values.granularity, values.chunk_rows)
    scale = scales.double()[torch.arange(shape[0]) // group].unsqueeze(1)
    if values.granularity == "group":  # of inputs: scales by row and column
        columns = torch.arange(shape[1]) // values.group_cols
        scale = scales.double().view(shape[0], -1)[:, columns]
    # float32 rounds the scale and the quotient, by 2**-24 each, on numbers of up to `limit` scales.
    allowed = scale * (0.5 + limit * 2**-22)
    assert bool(((weight.double() - quantized * scale).abs() <= allowed).all())


def test_halves_round_to_even_and_a_row_without_nonzero_has_scale_one() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0]])
    quantized, scales = cast_values(weight, ValueSpec("int8"))
    assert quantized.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scales is not None
    assert scales.tolist() == [1.0, 1.0]


def test_a_group_of_zeros_has_scale_one_beside_others_in_its_row() -> None:
    weight = torch.tensor([[127.0, 0.5, 0.0, 0.0, 254.0], [0.0, 0.0, 0.0, -12.7, 0.0]])
    quantized, scales = cast_values(weight, ValueSpec.parse("int8", "group:2"))
    assert quantized.tolist() == [[127, 0, 0, 0, 127], [0, 0, 0, -127, 0]]
    assert scales is not None
    expected = torch.tensor([1.0, 1.0, 2.0, 1.0, 12.7 / 127, 1.0])
    torch.testing.assert_close(scales, expected)


def test_zero_points_are_never_made_up() -> None:
    with pytest.raises(ValueError, match="zero_points: quantizing is symmetric"):
        cast_values(torch.ones(2, 3), ValueSpec("int8", zero_points=True))


def test_a_row_of_subnormals_has_the_smallest_normal_scale() -> None:
    weight = torch.tensor([[1e-44, -1e-44], [1.0, 0.0]])
    assert weight[0, 0] > 0
    quantized, scales = cast_values(weight, ValueSpec("int8"))
    assert quantized[0].tolist() == [0, 0]
    assert scales is not None
    assert scales[0] == torch.finfo(torch.float32).tiny


@given(SHAPES, st.sampled_from(["fp32", "bf16", "fp16"]), SEEDS)
def test_floats_round_to_nearest_and_carry_no_scales(
    shape: tuple[int, int], dtype: str, seed: int
) -> None:
    weight = normal(shape, seed).double()
    cast, scales = cast_values(weight, ValueSpec(dtype))
    assert scales is None
    epsilon = torch.finfo(cast.dtype).eps
    assert bool(((cast.double() - weight).abs() <= weight.abs() * epsilon / 2 + 1e-7).all())


def test_weights_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="70000 overflows fp16; use bf16 or fp32"):
        cast_values(torch.tensor([[70000.0]]), ValueSpec("fp16"))
    with pytest.raises(ValueError, match=r"1e\+300 overflows the float32 that int8 scales"):
        cast_values(torch.tensor([[1e300]], dtype=torch.float64), ValueSpec("int8"))
    for bad in (float("nan"), float("inf")):
        for dtype in ("fp32", "int8"):
            with pytest.raises(ValueError, match=r"weight\[0, 1\] is"):
                cast_values(torch.tensor([[1.0, bad]]), ValueSpec(dtype))
    for weight in (torch.ones(3), torch.ones(2, 2, dtype=torch.int32), torch.ones(0, 4)):
        with pytest.raises(ValueError, match="weight: expected a 2-D float matrix"):
            cast_values(weight, ValueSpec("int8"))
