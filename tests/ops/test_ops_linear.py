"""Every candidate against the float64 oracle, and its integers against int64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.ops import LinearWeight, PreparedLinear, choose
from sparse_runtime.spec import ActivationSpec, LinearSpec, Structure, ValueSpec
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    make_packed,
    make_weight,
)

# 21 outputs and 43 inputs divide none of the tiles, groups, blocks and bytes there are.
OUT, IN = 21, 43
STRUCTURES = {"dense": None, "unstructured": 0.8, "2:4": None, "block:4x1": 0.5}
TOKENS = (0, 1, 7, 64)
STATIC_INT8 = ActivationSpec("static", "int8", 0.03, -5)
STATIC_UINT8 = ActivationSpec("static", "uint8", 0.02, 131)
SCHEMES: dict[str, str | ActivationSpec] = {
    "none": "none",
    "dynamic": "dynamic",
    "symmetric": "symmetric",
    "static int8": STATIC_INT8,
    "static uint8": STATIC_UINT8,
}
CASES = [
    *product(STRUCTURES, ("fp32", "bf16", "fp16"), ("none",)),
    *product(STRUCTURES, ("int8", "int4"), SCHEMES),
]


def packed_case(structure: str, values: str, scheme: str, seed: int = 0) -> PackedWeight:
    return make_packed(
        (OUT, IN),
        structure,
        STRUCTURES[structure],
        values=values,
        activations=SCHEMES[scheme],
        seed=seed,
    )


def prepare(
    packed: PackedWeight, bias: Tensor | None, backend: str, dtype: torch.dtype = torch.float32
) -> PreparedLinear:
    return choose([LinearWeight("layer", packed, bias)], backend=backend, dtype=dtype).prepare()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("structure", "values", "scheme"), CASES)
def test_every_combination_is_close_to_the_oracle(
    structure: str, values: str, scheme: str, backend: str
) -> None:
    packed = packed_case(structure, values, scheme)
    offset = make_activations(1, OUT, seed=1)[0]
    for bias in (None, offset):
        layer = prepare(packed, bias, backend)
        for tokens, activation in product(TOKENS, (None, "relu", "gelu", "gelu_new")):
            x = make_activations(tokens, IN, seed=tokens)
            for residual in (None, make_activations(tokens, OUT, seed=3)):
                y = layer(x, activation, residual)
                oracle, baseline = linear_oracle(x, packed, bias, activation, residual)
                assert y.dtype == torch.float32
                # PyTorch's own GELU, which the reference runs, errs by up to 1.1e-6 up to 4 (its
                # erf is a polynomial), at one argument and hardly at the next.
                slack = 1.1e-6 if (backend, activation) == ("reference", "gelu") else 0.0
                name = f"{tokens} {activation}"
                assert_close_to_oracle(y, oracle, baseline, slack=slack, name=name)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -3), ("uint8", 200)])
def test_integers_come_through_the_whole_path_exactly(
    structure: str, values: str, dtype: str, zero_point: int, backend: str
) -> None:
    # With scales of one and sums below 2**24, float32 holds every result exactly. 300 inputs pass
    # every unrolled step of the kernels and leave a tail.
    outputs, inputs, limit = 37, 300, 127 if values == "int8" else 7
    mask = make_weight((outputs, inputs), structure, STRUCTURES[structure]) != 0
    generator = torch.Generator().manual_seed(5)
    weight = torch.randint(-limit, limit + 1, (outputs, inputs), generator=generator) * mask
    spec = LinearSpec(
        (outputs, inputs),
        Structure.parse(structure),
        ValueSpec(values),
        ActivationSpec("static", dtype, 1.0, zero_point),  # type: ignore[arg-type]
    )
    layer = prepare(pack(weight.to(torch.int8), spec, torch.ones(outputs)), None, backend)
    # Up to 400 in magnitude: the quantization saturates on both sides.
    x = torch.randint(-400, 401, (19, inputs), generator=generator)
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    seen = (x + zero_point).clamp(low, high) - zero_point
    assert torch.equal(layer(x.float()).long(), seen @ weight.T)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_full_range_dynamic_integers_are_exact(backend: str) -> None:
    # A token whose largest magnitude is 127 has scale one.
    generator = torch.Generator().manual_seed(6)
    weight = torch.randint(-128, 128, (33, 512), generator=generator, dtype=torch.int8)
    spec = LinearSpec((33, 512), Structure("dense"), ValueSpec("int8"), ActivationSpec())
    layer = prepare(pack(weight, spec, torch.ones(33)), None, backend)
    x = torch.randint(-127, 128, (9, 512), generator=generator)
    x[:, 0] = 127
    assert torch.equal(layer(x.float()).long(), x @ weight.long().T)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layers_run_as_one_give_their_outputs_side_by_side(scheme: str, backend: str) -> None:
    # Query, key and value of three structures; only the middle one has a bias.
    bias = make_activations(1, OUT, seed=1)[0]
    weights = [
        LinearWeight(structure, packed_case(structure, "int8", scheme, seed), b)
        for seed, (structure, b) in enumerate([("dense", None), ("2:4", bias), ("block:4x1", None)])
    ]
    fused = choose(weights, backend=backend).prepare()
    x, residual = make_activations(7, IN), make_activations(7, 3 * OUT, seed=2)
    alone = torch.cat([choose([w], backend=backend).prepare()(x) for w in weights], dim=1)
    # Floats are summed in the order of the layout, and that depends on where a row lies.
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if scheme == "none" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(fused(x), alone, **tolerance)
    torch.testing.assert_close(fused(x, "relu", residual), alone.relu() + residual, **tolerance)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scheme", ["dynamic", "static uint8", "none"])
def test_inputs_of_any_strides_give_what_a_contiguous_copy_gives(scheme: str, backend: str) -> None:
    layer = prepare(packed_case("dense", "int8", scheme), None, backend)
    wide = make_activations(12, IN + 9)
    views = {
        "columns": wide[:, 4 : 4 + IN],
        "every other row": wide[::2, :IN],
        "every other column": make_activations(5, 2 * IN)[:, ::2],
        "transposed": make_activations(IN, 6).T,
        "one row repeated": wide[:1, :IN].expand(5, IN),
        "overlapping rows": wide.flatten().as_strided((8, IN), (3, 1)),
        "one column of storage": wide[:, :1].expand(12, IN),
    }
    for name, x in views.items():
        assert torch.equal(layer(x), layer(x.clone(memory_format=torch.contiguous_format))), name
    residual = make_activations(OUT, 12).T
    x = wide[:, :IN].contiguous()
    assert torch.equal(layer(x, None, residual), layer(x, None, residual.contiguous()))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("values", "scheme"), [("int8", "dynamic"), ("int8", "none")])
def test_other_float_types_come_back_as_they_went_in(
    values: str, scheme: str, dtype: torch.dtype, backend: str
) -> None:
    packed = packed_case("dense", values, scheme)
    bias = make_activations(1, OUT, seed=1)[0]
    x = make_activations(7, IN, dtype=dtype)
    y = prepare(packed, bias, backend, dtype)(x)
    assert y.dtype == dtype
    # Integers are computed in float32 whatever the input's type.
    precision = torch.float32 if (dtype, scheme) == (torch.float64, "dynamic") else dtype
    oracle, _ = linear_oracle(x, packed, bias)
    _, baseline = linear_oracle(x.to(precision), packed, bias)
    assert_close_to_oracle(y.to(precision), oracle, baseline)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_gives_nan_and_harms_no_other(bad: float, backend: str) -> None:
    layer = prepare(packed_case("dense", "int8", "dynamic"), None, backend)
    x = make_activations(4, IN)
    clean = layer(x)
    x[2, 5] = bad
    y = layer(x)
    assert bool(y[2].isnan().all())
    kept = [0, 1, 3]
    assert torch.equal(y[kept], clean[kept])


@pytest.mark.parametrize("scheme", ["dynamic", "static int8", "static uint8"])
def test_the_kernel_and_the_reference_quantize_hazards_alike(scheme: str) -> None:
    # Ties, zeros, subnormals, huge values, and for static scales NaN and infinities.
    x = torch.zeros(6, IN)
    x[1] = torch.arange(IN) / 2 - 10
    x[2] = 1e-41
    x[3] = 3e38
    x[4, ::2] = -1e-30
    if scheme != "dynamic":
        x[5, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    packed = packed_case("dense", "int8", scheme)
    cpu, reference = (prepare(packed, None, backend)(x) for backend in ("cpu", "reference"))
    assert torch.equal(cpu, reference)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scheme", ["dynamic", "none"])
def test_operands_that_do_not_fit_are_refused_before_anything_runs(
    scheme: str, backend: str
) -> None:
    layer = prepare(packed_case("dense", "int8", scheme), None, backend)
    x = torch.ones(2, IN)
    refused: list[tuple[tuple[Tensor, str | None, Tensor | None], str]] = [
        ((torch.ones(2, IN + 1), None, None), r"floats \[tokens, 43\], got .* \[2, 44\]"),
        ((torch.ones(2, IN - 1), None, None), r"\[2, 42\]"),
        ((torch.ones(IN), None, None), r"got torch.float32 \[43\]"),
        ((torch.ones(2, IN, dtype=torch.int64), None, None), "got torch.int64"),
        ((x, "swish", None), "activation 'swish': expected None or one of gelu"),
        ((x, None, torch.ones(3, OUT)), r"expected residual \[2, 21\] on cpu, got \[3, 21\]"),
        ((x, None, torch.ones(2, 1)), r"got \[2, 1\]"),
        ((x, None, torch.ones(2, OUT, device="meta")), "on cpu, got .* on meta"),
    ]
    for operands, message in refused:
        with pytest.raises(ValueError, match=message):
            layer(*operands)
