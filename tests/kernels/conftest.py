"""What tests of the tile kernel share, whatever the weight's layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def multiply() -> Callable[[Tensor, Any, int, Any], Tensor]:
    """float32 [tokens, out]: rows, int8 with scale 1 or floats, times a packed matrix."""
    pytest.importorskip("triton")
    from sparse_runtime.kernels.linear.linear_triton import linear
    from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
    from sparse_runtime.kernels.linear.tiles import Config, Workspace, workspace_needs

    def product(x: Tensor, weight: Any, outputs: int, config: Config) -> Tensor:
        tokens = len(x)
        out = torch.full((tokens, outputs), 7.0, device=x.device)
        rows: Quantized | Tensor = x
        epilogue = Epilogue()
        if x.dtype == torch.int8:
            rows = Quantized(x, x.stride(0), torch.ones(1, device=x.device), None, 0)
            epilogue = Epilogue(weight_scale=torch.ones(outputs, device=x.device))
        partials, counters = workspace_needs(tokens, outputs, config)
        workspace = Workspace(
            torch.empty(partials, device=x.device),
            torch.zeros(counters, dtype=torch.int32, device=x.device),
        )
        linear(rows, weight, epilogue, None, Target(out, outputs), "none", config, workspace)
        return out

    return product
