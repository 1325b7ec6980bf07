"""Ranges against brute force on the values themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.oneshot.activation_ranges import (
    RangeHistogram,
    activation_ranges,
    static_spec,
)
from sparse_runtime.compress.targets import encoder_linears
from sparse_runtime.spec import ActivationSpec


def test_counts_are_right_however_the_range_grows() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(500) * scale for scale in (1.0, 0.1, 30.0, 4.0)]
    histogram = RangeHistogram(bins=64)
    for part in parts:
        histogram.add(part)
    values = torch.cat(parts)
    expected = torch.histc(values, 64, -histogram.limit, histogram.limit).double()
    assert histogram.counts.sum() == 2000
    assert (histogram.counts - expected).abs().sum() <= 4  # values on an edge, in float32
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_to_within_a_bin(percentile: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(20_000) * 2 + 1
    histogram = RangeHistogram()
    for part in values.split(1000):
        histogram.add(part)
    low, high = histogram.percentile_range(percentile)
    outside = round(20_000 * (100 - percentile) / 200)
    width = 2 * histogram.limit / 4096
    # The ends lie on edges of bins: no more than asked for is left out, and a bin less would be.
    assert (values < low - 1e-5).sum() <= outside < (values < low + width + 1e-5).sum()
    assert (values > high + 1e-5).sum() <= outside < (values > high - width - 1e-5).sum()
    assert histogram.percentile_range(100) == (float(values.min()), float(values.max()))


def test_the_mse_range_is_as_good_as_the_best_on_the_values() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(4000), torch.tensor([25.0, -9.0])])
    histogram = RangeHistogram()
    histogram.add(values)

    def error(low: float, high: float) -> float:
        return float((rounded(values, static_spec(low, high)) - values).square().mean())

    best = min(error(low / 4, high / 4) for low in range(-36, 0) for high in range(1, 101))
    found = error(*histogram.mse_range())
    assert found <= best * 1.1
    assert found < error(histogram.low, histogram.high)


def rounded(values: Tensor, spec: ActivationSpec) -> Tensor:
    levels = (torch.round(values / spec.scale) + spec.zero_point).clamp(0, 255)
    return (levels - spec.zero_point) * spec.scale


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(-1.0, 1.0, 128), (0.5, 2.0, 0), (-3.0, -1.0, 255), (0, 0, 0)]
)
def test_zero_has_an_integer(low: float, high: float, zero_point: int) -> None:
    spec = static_spec(low, high)
    assert spec.zero_point == zero_point
    assert rounded(torch.zeros(1), spec) == 0


def test_of_zeros_and_of_nothing() -> None:
    histogram = RangeHistogram()
    histogram.add(torch.zeros(5))
    histogram.add(torch.zeros(0))
    assert histogram.counts.sum() == 5
    assert histogram.percentile_range() == histogram.mse_range() == (0.0, 0.0)
    histogram.add(torch.tensor([2.0]))
    assert histogram.counts.sum() == 6


@pytest.mark.parametrize("bins", [0, 6])
def test_bins_must_join(bins: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        RangeHistogram(bins)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
def test_of_a_model(make_model: Callable[[str], nn.Module], family: str, method: str) -> None:
    model = make_model(family)
    linears = encoder_linears(model)
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    batches = [{"input_ids": ids, "attention_mask": mask}]
    seen: dict[str, Tensor] = {}
    handles = [
        linear.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0][mask.bool()]})
        )
        for name, linear in linears.items()
    ]
    with torch.no_grad():
        model(**batches[0])
    for handle in handles:
        handle.remove()
    specs = activation_ranges(model, linears, batches, method=method, progress=False)  # type: ignore[arg-type]
    assert specs.keys() == linears.keys()
    for name, spec in specs.items():
        assert (spec.scheme, spec.dtype) == ("static", "uint8")
        error = (rounded(seen[name], spec) - seen[name]).square().mean().sqrt()
        assert error < 0.02 * seen[name].std()
        if method == "min-max":
            width = float(seen[name].max().clamp_min(0) - seen[name].min().clamp_max(0))
            assert spec.scale == pytest.approx(width / 255, rel=1e-6)


def test_values_that_are_not_finite_name_the_layer(
    make_model: Callable[[str], nn.Module],
) -> None:
    model = make_model("bert")
    ids = torch.ones(1, 3, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": ids}
    name, linear = next(iter(encoder_linears(model).items()))
    model.get_input_embeddings().weight.data[1] = torch.inf
    with pytest.raises(ValueError, match=f"{name}: .*NaN or infinity"):
        activation_ranges(model, {name: linear}, [batch])
    with pytest.raises(ValueError, match="at least one"):
        activation_ranges(model, {name: linear}, [])
    with pytest.raises(ValueError, match="method 'max'"):
        activation_ranges(model, {name: linear}, [batch], method="max")  # type: ignore[arg-type]
