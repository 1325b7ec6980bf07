"""Where tensors lie: the interpreter runs on one device and cannot tell two apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparse_runtime.ops.cuda.backend import CudaBackend
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.spec import Structure


def test_blocks_are_packed_where_the_weight_lies() -> None:
    family = next(f for f in FAMILIES if f.name == "triton.block")
    seen: dict[str, Any] = {}

    def pack(blocks: Any, bitmask: Any, *rest: Any) -> None:
        seen.update(blocks=blocks.device, bitmask=bitmask.device)

    matrix = torch.ones(64, 64)
    layers: Any = SimpleNamespace(matrix=matrix, structure=Structure.parse("block:16x16"))
    with pytest.MonkeyPatch.context() as patch:
        moved: list[torch.Tensor] = []
        patch.setattr("sparse_runtime.ops.cuda.families.block_layout.pack", pack)
        patch.setattr(
            "sparse_runtime.ops.cuda.families.pack_bits",
            lambda mask: SimpleNamespace(to=lambda device: moved.append(device) or mask),
        )
        family.pack(layers)
    assert moved == [matrix.device] and seen["blocks"] == seen["bitmask"]


def test_layers_are_checked_on_the_backends_device() -> None:
    checked: list[torch.device] = []
    backend: Any = SimpleNamespace(device=torch.device("meta"))
    layer: Any = SimpleNamespace(check=lambda x, activation, residual: checked.append(x.device))
    value: Any = SimpleNamespace(features=8)
    CudaBackend._check(backend, layer, value, None, None)
    assert checked == [torch.device("meta")]
