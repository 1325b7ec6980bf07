"""Workspaces of layers that are called one by one."""

from __future__ import annotations

import torch

from ...kernels.linear.configs import Workspace

_COUNTERS: dict[tuple[torch.device, int], torch.Tensor] = {}
"""By device and stream: launches on one stream follow each other, and leave them zero."""

_LEAST_COUNTERS = 1024


def workspace_for(device: torch.device, partials: int, counters: int) -> Workspace:
    """Memory for one launch on the current stream.

    Args:
        device: where the launch runs.
        partials: four-byte elements.
        counters: how many.
    """
    space = torch.empty(partials, dtype=torch.float32, device=device) if partials else None
    return Workspace(space, _counters(device, counters))


def _counters(device: torch.device, count: int) -> torch.Tensor:
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    if torch.cuda.is_current_stream_capturing():
        # A graph may be replayed on any stream, so it has counters of its own.
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device, stream.cuda_stream)
    kept = _COUNTERS.get(key)
    if kept is None or len(kept) < count:
        # An inference tensor could not be written outside of inference mode.
        with torch.inference_mode(False):
            size = max(count, _LEAST_COUNTERS)
            kept = torch.zeros(size, dtype=torch.int32, device=device)
        _COUNTERS[key] = kept
    return kept
