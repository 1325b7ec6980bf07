"""A sum takes the place of its residual only where nobody reads that afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C

POOL = _C.WorkspacePool()
ANY = 2**40
FEATURES = 40

# Threads and tokens: a panel a task; tasks of some rows of one panel; two panels, the last with one
# vector, whose rows are cut too.
CASES = [(1, 64), (4, 64), (4, 65)]


class Network:
    """Layers of FEATURES outputs and inputs, and passes over the same tokens."""

    def __init__(self, threads: int, tokens: int) -> None:
        self.x = torch.randn(tokens, FEATURES)
        self.weights = [torch.randn(FEATURES, FEATURES) / 8 for _ in range(2)]
        self.layers = [
            _C.PanelLinear(
                "layer", [(ANY, _C.float_panels_pack(w.data_ptr(), *w.shape, layout))], 0
            )
            for w, layout in zip(self.weights, ("dense32", "sparse32"), strict=True)
        ]
        self.run = _C.Forward([tokens], [], threads, "auto", POOL)

    def enter(self) -> _C.PanelValue:
        return self.run.from_rows(self.x.data_ptr(), FEATURES, FEATURES, None)

    def linear(
        self, i: int, x: _C.PanelValue, residual: _C.PanelValue | None = None
    ) -> _C.PanelValue:
        return self.run.linear(x, self.layers[i], "none", residual, None)

    def leave(self, *values: _C.PanelValue) -> list[Tensor]:
        rows = [torch.full((len(self.x), FEATURES), 1e9) for _ in values]
        for value, out in zip(values, rows, strict=True):
            self.run.to_rows(value, out.data_ptr(), FEATURES)
        self.run.run()
        return rows

    def product(self, i: int, x: Tensor) -> Tensor:
        return x @ self.weights[i].T


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} threads, {case[1]} tokens")
def network(request: pytest.FixtureRequest) -> Network:
    return Network(*request.param)


def test_a_residual_read_for_the_last_time(network: Network) -> None:
    value = network.enter()
    inner = network.linear(0, value)
    total = network.linear(1, inner, value)
    del value, inner
    (found,) = network.leave(total)
    hidden = network.product(0, network.x)
    torch.testing.assert_close(found, network.product(1, hidden) + network.x, rtol=1e-5, atol=1e-5)


def test_sums_of_sums_stay_in_one_place(network: Network) -> None:
    expected, value = network.x, network.enter()
    for i in (0, 1, 0):
        inner = network.linear(i, value)
        value = network.linear(1, inner, value)
        expected = network.product(1, network.product(i, expected)) + expected
    (found,) = network.leave(value)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_residual_that_is_the_input(network: Network) -> None:
    value = network.enter()
    total = network.linear(0, value, value)
    del value
    (found,) = network.leave(total)
    expected = network.product(0, network.x) + network.x
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_residual_that_another_layer_reads_later(network: Network) -> None:
    value = network.enter()
    total = network.linear(1, network.linear(0, value), value)
    later = network.linear(0, value)
    del value
    _, found = network.leave(total, later)
    torch.testing.assert_close(found, network.product(0, network.x), rtol=1e-5, atol=1e-5)


def test_a_residual_that_the_caller_keeps(network: Network) -> None:
    value = network.enter()
    total = network.linear(1, network.linear(0, value), value)
    network.leave(total)
    (found,) = network.leave(value)  # a run of its own, after the sum
    assert torch.equal(found, network.x)
