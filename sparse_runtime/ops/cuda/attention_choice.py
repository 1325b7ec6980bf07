"""Which kernel runs attention: ours, or PyTorch's where the environment asks for it.

Nothing has compared the two on a GPU, and ours quantizes what it writes: PyTorch's takes a launch
more. So ours is the default, and benchmarks/gpu/rows.py times both on a device.
"""

from __future__ import annotations

import os

import torch

from ...kernels.attention import varlen

ATTENTION_VARIABLE = "SPARSE_RUNTIME_CUDA_ATTENTION"
"""Environment variable: the kernel that runs attention wherever it can."""

OURS, VARLEN = "triton", "varlen"


def wanted_attention() -> str:
    """What the environment says.

    Raises:
        ValueError: the variable is set to something else than "triton" or "varlen".
    """
    text = os.environ.get(ATTENTION_VARIABLE, "") or OURS
    if text not in (OURS, VARLEN):
        raise ValueError(f"{ATTENTION_VARIABLE}={text!r}: expected {OURS!r} or {VARLEN!r}")
    return text


class AttentionChoice:
    """Chooses between the two for a model's attentions, as the environment said when it was loaded.

    Args:
        device: of the model.
        dtype: the activations' float type.

    Raises:
        ValueError: the environment names no kernel.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._wanted = wanted_attention()

    def takes(self, head_size: int, bias: bool) -> bool:
        """Whether PyTorch's kernel runs such heads."""
        return self._wanted == VARLEN and self._unavailable(head_size, bias) is None

    def note(self, head_size: int, bias: bool) -> str:
        """What runs, and why not the other."""
        theirs = "torch.nn.attention.varlen"
        reason = self._unavailable(head_size, bias)
        if self.takes(head_size, bias):
            return f"{theirs} over sequences without padding, {ATTENTION_VARIABLE}={VARLEN}"
        if reason is None:
            reason = f"only where {ATTENTION_VARIABLE}={VARLEN} says that it is faster"
        return f"Triton kernel over sequences without padding; {theirs}: {reason}"

    def _unavailable(self, head_size: int, bias: bool) -> str | None:
        return varlen.unavailable(self._device, self._dtype, head_size, bias)
