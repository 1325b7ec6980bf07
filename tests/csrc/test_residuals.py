"""A sum takes the place of its residual, but only where nobody reads that afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime import _C

ISAS = [row["name"] for row in _C.isas() if row["available"]]
ANY = 2**40
FEATURES = 256  # four calls of 64 rows of dense32 where a task has all of them, one of sparse32
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """Threads and tokens of a pass, and what its tasks are."""

    threads: int
    tokens: int


CASES = [
    Case(1, 64),  # one panel a task
    Case(1, 129),  # three, the last with one vector
    Case(4, 64),  # a panel's rows in four tasks
    Case(4, 65),  # of two panels
    Case(4, 512),  # two panels a thread, of tiles in one task
]


class Network:
    """Layers of FEATURES outputs and inputs, and a pass over the same tokens."""

    def __init__(self, case: Case, isa: str, layouts: tuple[str, str]) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(case.tokens, FEATURES)
        self.tolerance = 3e-2 if "tiles16" in layouts else 1e-4
        self.weights = [(torch.randn(FEATURES, FEATURES) / 24).bfloat16().float() for _ in layouts]
        self.layers = [float_layer(w, name) for w, name in zip(self.weights, layouts, strict=True)]
        self.pool = _C.WorkspacePool()
        self.run = _C.Forward([case.tokens], [], case.threads, isa, self.pool)

    def enter(self) -> _C.PanelValue:
        return self.run.from_rows(self.x.data_ptr(), FEATURES, FEATURES, None)

    def linear(
        self, i: int, x: _C.PanelValue, residual: _C.PanelValue | None = None, norm: object = None
    ) -> _C.PanelValue:
        return self.run.linear(x, self.layers[i], "none", residual, norm)  # type: ignore[arg-type]

    def leave(self, *values: _C.PanelValue) -> list[Tensor]:
        rows = [torch.full((len(self.x), FEATURES), 1e9) for _ in values]
        for value, out in zip(values, rows, strict=True):
            self.run.to_rows(value, out.data_ptr(), FEATURES)
        self.run.run()
        return rows

    def product(self, i: int, x: Tensor) -> Tensor:
        return x @ self.weights[i].T

    def check(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=self.tolerance, atol=self.tolerance)


def float_layer(w: Tensor, layout: str) -> _C.PanelLinear:
    packed = _C.float_panels_pack(w.data_ptr(), *w.shape, layout)
    return _C.PanelLinear("layer", [(ANY, packed)], 0)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


# Tiles take several panels a task, and round inputs to bf16.
RUNS = [(isa, ("dense32", "sparse32")) for isa in ISAS]
RUNS += [(isa, ("tiles16", "tiles16")) for isa in ISAS if isa == "amx"]


@pytest.fixture(params=RUNS, ids=str)
def network(request: pytest.FixtureRequest, case: Case) -> Network:
    return Network(case, *request.param)


def test_a_residual_read_for_the_last_time(network: Network) -> None:
    value = network.enter()
    inner = network.linear(0, value)
    total = network.linear(1, inner, value)
    del value, inner
    (found,) = network.leave(total)
    network.check(found, network.product(1, network.product(0, network.x)) + network.x)


def test_a_residual_that_is_the_input(network: Network) -> None:
    value = network.enter()
    total = network.linear(0, value, value)
    del value
    (found,) = network.leave(total)
    network.check(found, network.product(0, network.x) + network.x)


def test_a_residual_that_another_layer_reads_later(network: Network) -> None:
    value = network.enter()
    total = network.linear(1, network.linear(0, value), value)
    later = network.linear(0, value)
    del value
    first, second = network.leave(total, later)
    network.check(first, network.product(1, network.product(0, network.x)) + network.x)
    network.check(second, network.product(0, network.x))


def test_a_residual_that_the_caller_keeps(network: Network) -> None:
    value = network.enter()
    total = network.linear(1, network.linear(0, value), value)
    network.leave(total)
    (found,) = network.leave(value)  # a run of its own, after the sum
    assert torch.equal(found, network.x)


def test_normalized_sums_whose_readers_take_bytes_and_floats(case: Case) -> None:
    """As in an encoder of integers: the next layer quantizes what the next sum adds to."""
    torch.manual_seed(1)
    network = Network(case, "auto", ("dense32",))
    w = torch.randint(-127, 128, (FEATURES, FEATURES), dtype=torch.int8)
    scale = torch.full((FEATURES,), 1e-3)
    packed = _C.int8_panels_pack(w.data_ptr(), *w.shape, "dense")
    network.layers = [
        _C.PanelLinear("layer", [(ANY, packed)], scale.data_ptr(), 0, "static", 0.05, 128)
    ]
    ones, zeros = torch.ones(FEATURES), torch.zeros(FEATURES)
    norm = _C.PanelNorm(ones.data_ptr(), zeros.data_ptr(), FEATURES, NORM_EPS)

    def layer(x: Tensor) -> Tensor:
        levels = (x / 0.05).round().clamp(-128, 127)
        return levels @ w.float().T * 0.05e-3

    expected, value = network.x, network.enter()
    for _ in range(3):
        value = network.linear(0, network.linear(0, value), value, norm)
        expected = F.layer_norm(layer(layer(expected)) + expected, (FEATURES,), eps=NORM_EPS)
    (found,) = network.leave(value)
    # Where an input close to a tie falls to the next level, its token's values differ by some
    # 0.05 times a weight of at most 0.127; a sum that has lost its residual is off by about 1.
    assert (found - expected).abs().max() < 0.1
    assert (found - expected).abs().mean() < 0.01


BLOCKED = [
    (isa, layout)
    for isa in ISAS
    for layout in ("band1_grouped", "band1_gathered", "sparse32")
    if (_C.float_panels_runs if layout == "sparse32" else _C.int8_panels_runs)(layout, isa)
]


@pytest.mark.parametrize(("isa", "layout"), BLOCKED)
def test_blocks_of_inputs_that_pass_over_calls_of_768_rows(isa: str, layout: str) -> None:
    """Two calls of 768 rows and one of 64; two blocks of INT8 inputs, six of floats."""
    torch.manual_seed(0)
    n, k, tokens = 1600, 900, 65
    w = torch.randint(-127, 128, (n, k)) * (torch.rand(n, k) < 0.1)
    levels = torch.randint(-128, 128, (tokens, k))
    x, bias, added = levels * 0.0625, torch.randn(n), torch.randn(tokens, n)
    if layout == "sparse32":
        values = w / 1024
        packed = _C.float_panels_pack(values.data_ptr(), n, k, layout)
        layer = _C.PanelLinear("layer", [(ANY, packed)], bias.data_ptr())
    else:
        values, scale = w.to(torch.int8), torch.full((n,), 1 / 1024)
        packed = _C.int8_panels_pack(values.data_ptr(), n, k, layout)
        scheme = ("static", 0.0625, 128)
        layer = _C.PanelLinear("layer", [(ANY, packed)], scale.data_ptr(), bias.data_ptr(), *scheme)
    run = _C.Forward([tokens], [], 1, isa, _C.WorkspacePool())
    value = run.from_rows(x.data_ptr(), k, k, None)
    residual = run.from_rows(added.data_ptr(), n, n, None)
    total = run.linear(value, layer, "none", residual, None)
    del value, residual
    found = torch.full((tokens, n), 1e9)
    run.to_rows(total, found.data_ptr(), n)
    run.run()
    expected = x.double() @ (w.double() / 1024).T + bias + added
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_sums_need_no_stream_of_their_own() -> None:
    """Of floats: the residual's, and what the first layer makes."""
    stream = 2 << 20
    network = Network(Case(1, stream // (4 * FEATURES)), "auto", ("dense32", "dense32"))
    value = network.enter()
    for _ in range(3):
        value = network.linear(1, network.linear(0, value), value)
    network.leave(value)
    pool = network.pool
    del value, network
    assert 2 * stream <= pool.bytes < 3 * stream
