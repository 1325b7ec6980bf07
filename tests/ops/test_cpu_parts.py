"""How many tokens the CPU backend takes through the layers at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sparse_runtime.ops import cpu_backend
from sparse_runtime.ops.cpu_backend import CpuBackend


class Layer(cpu_backend.PanelLinear):
    """Of a size and a layout, without a weight."""

    def __init__(self, out_features: int, layout: str) -> None:
        torch.nn.Module.__init__(self)
        self.out_features = out_features
        self.choices = (SimpleNamespace(layout=layout),)


def layers(hidden: int, layout: str) -> list[Layer]:
    return [Layer(size * hidden, layout) for size in (3, 1, 4, 1)]


# 4 MiB a thread: of panels of 64 tokens that are 884,736 bytes in INT8 at 768 features.
@pytest.mark.parametrize(
    ("threads", "hidden", "layout", "panels"),
    [
        (4, 768, "dense", 16),
        (1, 768, "band4_gathered", 4),
        (4, 768, "dense16", 16),
        (4, 768, "sparse32", 8),  # floats
        (1, 768, "sparse32", 4),  # never fewer
        (4, 384, "dense", 36),
        (8, 1024, "dense32", 16),  # never fewer than two a thread
        (1, 768, "tile_bits", 16),  # two tasks of eight panels, which AMX takes at a time
    ],
)
def test_panels_that_the_caches_hold(
    monkeypatch: pytest.MonkeyPatch, threads: int, hidden: int, layout: str, panels: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    backend = CpuBackend(torch.device("cpu"), torch.float32, "auto")
    assert backend.most_tokens(layers(hidden, layout)) == 64 * panels


def test_layers_that_run_by_rows_make_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    backend = CpuBackend(torch.device("cpu"), torch.float32, "auto")
    assert backend.most_tokens([torch.nn.Linear(768, 6912)]) == 64 * 8


def test_a_model_without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    backend = CpuBackend(torch.device("cpu"), torch.float32, "auto")
    assert backend.most_tokens([]) >= 64
