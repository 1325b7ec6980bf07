"""The kernels' loops run on torch's own OpenMP threads, or on the pool, with the same results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_runtime.formats import compress
from sparse_runtime.ops import LinearWeight, PreparedLinear, choose, native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


@pytest.fixture
def threads() -> Iterator[int]:
    """Four threads for torch, the entry point in place again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)
    native.extension().use_openmp(native.openmp_entry())


def problem() -> tuple[PreparedLinear, Tensor]:
    """Large enough that the kernel wants every thread."""
    generator = torch.Generator().manual_seed(0)
    packed, _ = compress(torch.randn(512, 256, generator=generator))
    layer = choose([LinearWeight("layer", packed)], backend="cpu").prepare()
    return layer, torch.randn(300, 256, generator=generator)


def test_torch_on_linux_has_the_entry_point() -> None:
    if not torch.backends.openmp.is_available():
        pytest.skip("this torch is built without OpenMP")
    assert native.openmp_entry() != 0


def test_team_and_pool_give_the_same_bits(threads: int) -> None:
    layer, x = problem()
    team = layer(x)
    native.extension().use_openmp(0)
    assert torch.equal(team, layer(x))


def test_each_caller_has_a_team(threads: int) -> None:
    layer, x = problem()
    expected = layer(x)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: layer(x), range(16)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs_after_the_parent_used_the_team(threads: int) -> None:
    layer, x = problem()
    expected = layer(x).numpy()
    child = os.fork()
    if child == 0:
        # Compared by numpy: torch's own parallel operators do not survive a fork.
        os._exit(0 if np.array_equal(layer(x).numpy(), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
