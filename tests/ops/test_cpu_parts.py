"""How many tokens the CPU backend takes through the layers at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparse_runtime.ops import PreparedLinear
from sparse_runtime.ops.cpu_panels import PanelLinear
from sparse_runtime.ops.cpu_parts import part_tokens


class Panels(PanelLinear):
    """Of a size and a layout, without a weight."""

    def __init__(self, out_features: int, layout: str) -> None:
        torch.nn.Module.__init__(self)
        self.out_features = out_features
        self.choices = (SimpleNamespace(layout=layout),)  # type: ignore[assignment]


class Rows(PreparedLinear):
    def forward(self, *operands: Any) -> torch.Tensor:
        raise NotImplementedError


def layer(hidden: int, layout: str) -> list[PreparedLinear]:
    return [Panels(size * hidden, layout) for size in (3, 1, 4, 1)]


@pytest.mark.parametrize(
    ("threads", "hidden", "layout", "panels"),
    [
        # A panel of 64 tokens: 884,736 bytes in INT8 and BF16 at 768 features, twice that in FP32.
        (4, 768, "dense", 4 * 4),
        (1, 768, "band4_gathered", 4),
        (4, 768, "dense16", 4 * 4),
        (4, 768, "sparse32", 4 * 2),
        (1, 768, "sparse32", 4),  # never fewer
        (8, 1024, "dense32", 8 * 2),  # nor than two a thread
        (1, 768, "tile_bits", 16),  # AMX
        (4, 384, "dense", 4 * 9),
        (2, 32, "dense", 2 * 64),  # a narrow token counts as 1,024 bytes
        (3, 768, "tiles", 3 * 6),  # at least 16, the same for each
        (64, 768, "dense", 64 * 2),  # 151 panels are 128 MiB
        (256, 768, "sparse32", 256),  # 75 panels are, but each thread has one
    ],
)
def test_panels_that_the_caches_hold(threads: int, hidden: int, layout: str, panels: int) -> None:
    assert part_tokens([layer(hidden, layout)], threads) == 64 * panels


def test_the_layer_that_makes_most_bytes_decides() -> None:
    """Not the one that makes most values."""
    floats, integers = layer(768, "dense32"), layer(800, "dense")
    assert part_tokens([integers, floats], 4) == part_tokens([floats], 4)
    assert part_tokens([integers, floats], 4) < part_tokens([integers], 4)


def test_layers_that_run_by_rows_make_floats() -> None:
    rows = Rows("rows", 768, 9 * 768)
    assert part_tokens([[rows]], 4) == part_tokens([layer(768, "dense32")], 4)


@pytest.mark.parametrize("layers", [[], [[]]])
def test_models_without_linears(layers: list[list[PreparedLinear]]) -> None:
    assert part_tokens(layers, 2) == 64 * 2 * 64
