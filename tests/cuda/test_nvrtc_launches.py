"""How kernels that NVRTC has compiled are launched, on a driver that only listens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparse_runtime.kernels import cuda_nvrtc
from sparse_runtime.kernels.cuda_compiled import Tile
from sparse_runtime.kernels.cuda_interface import SrLinear
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary
from sparse_runtime.kernels.linear.operands import SCHEMES


class FakeDriver:
    """The driver's functions that launch; ``context`` is the calling thread's."""

    def __init__(self, most_shared: int) -> None:
        self.most_shared, self.context = most_shared, None
        self.launched: list[tuple[int, ...]] = []
        self.cuModuleLoadData = self.cuModuleGetFunction = lambda *given: 0

    def cuFuncSetAttribute(self, handle: Any, attribute: int, size: int) -> int:
        return int(size > self.most_shared)

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = self.context
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        context._obj.value = 100 + device
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.context = context.value
        return 0

    def cuLaunchKernel(self, handle: Any, *given: Any) -> int:
        assert self.context is not None
        self.launched.append(given[:7])
        return 0


@pytest.fixture
def launching(emulator, monkeypatch: pytest.MonkeyPatch) -> RuntimeLibrary:
    """A library whose kernels are launched on a fake driver, where a block has 99 KiB."""
    names = {
        cuda_nvrtc._expression(k): "_ZN14sparse_runtime3mma13linear_kernel" + k.name
        for k in emulator.kernels
    }
    tiles = {
        names[cuda_nvrtc._expression(k)]: Tile(k.name, k.tile_out, k.tile_tok, 128, shared)
        for k in emulator.kernels
        for shared in [104_832 if k.tile_tok == 128 else 40_000]
    }
    monkeypatch.setattr(cuda_nvrtc, "tile_of", tiles.get)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    library = object.__new__(RuntimeLibrary)
    library.kernels, library._loaded = emulator.kernels, {}
    library.driver = FakeDriver(99 * 1024)
    for dtype, structure in {(k.dtype, k.structure) for k in emulator.kernels}:
        group = cuda_nvrtc._group(dtype, structure)
        asked = {one: names.get(one, "rows") for one in cuda_nvrtc._expressions(group)}
        library._loaded[1, group] = library._load(b"", asked)
    return library


def test_a_thread_without_a_context_takes_the_gpus(launching: RuntimeLibrary) -> None:
    kernel = next(one for one in launching.kernels if one.tile_tok == 64)
    layer = SrLinear(tokens=130, out_features=100, split_k=2, scheme=SCHEMES.index("static"))
    launching.launch(kernel, layer, torch.device("cuda", 1))
    assert launching.driver.context == 101
    # Three tiles of tokens and two of outputs, for each split.
    assert launching.driver.launched == [(6, 2, 1, 128, 1, 1, 40_000)]


@pytest.mark.parametrize("scheme", ["symmetric", "full_range", "asymmetric"])
def test_rows_are_quantized_by_a_second_launch(launching: RuntimeLibrary, scheme: str) -> None:
    kernel = next(one for one in launching.kernels if one.tile_tok == 64)
    layer = SrLinear(tokens=130, out_features=64, split_k=1, scheme=SCHEMES.index(scheme))
    launching.launch(kernel, layer, torch.device("cuda", 1))
    assert launching.driver.launched[1:] == [(130, 1, 1, 128, 1, 1, 0)]


def test_a_tile_that_a_gpu_has_no_room_for_is_named(launching: RuntimeLibrary) -> None:
    kernel = next(one for one in launching.kernels if one.tile_tok == 128)
    layer = SrLinear(tokens=130, out_features=64, split_k=1)
    with pytest.raises(RuntimeError, match=rf"{kernel.name}: a block needs more shared memory"):
        launching.launch(kernel, layer, torch.device("cuda", 1))
    assert launching.driver.launched == []
