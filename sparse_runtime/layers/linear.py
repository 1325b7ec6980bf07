"""A drop-in for ``nn.Linear`` that holds a packed weight and runs it through ops."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..formats import Compression, PackedWeight, check_bias
from .checks import (
    INPUT_DTYPES,
    check_input,
    check_kind_of_tensor,
    refuse_training,
    unusual,
)
from .module import PackedModule

logger = logging.getLogger(__name__)


class Linear(PackedModule):
    """``y = x @ weight.T + bias`` on a packed weight, for inference.

    It starts in evaluation mode. Packed tensors keep the types that its spec fixes; ``.to(dtype)``
    changes the bias and the type of ``weight``. See docs/linear.md.

    Attributes:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        spec: structure, values and activation quantization of the layer.
        bias: Parameter float [out_features] without grad, or None; another may be assigned. The
            prepared layout has a copy: call :meth:`prepare` after changing the bias in place.
        backend: the backend asked for.
        name: what :meth:`explain` and error messages call the layer.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        *,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        name: str = "linear",
    ) -> None:
        """Prepare a packed weight to be run.

        Args:
            packed: the weight, logically [out_features, in_features]; it stays on its device.
            bias: float [out_features] or None; copied.
            backend: "auto", or the backend that must run the layer.
            dtype: float type of ``weight`` and of the inputs to prepare for, as ``nn.Linear`` has
                one; inputs of other float types work too. None takes the values' type, float32
                for integers.
            name: what messages call the layer.

        Raises:
            TypeError: ``packed`` is not a packed weight, or ``bias`` not a tensor.
            ValueError: packed weight, bias or dtype are not valid, or the backend is unknown.
            RuntimeError: the backend asked for cannot run the layer; lists the reasons.
        """
        super().__init__()
        if not isinstance(packed, PackedWeight):
            raise TypeError(
                f"packed: expected a PackedWeight, got {type(packed).__name__}; use "
                "Linear.from_dense for an nn.Linear"
            )
        packed.validate()
        if dtype is None:
            dtype = torch.float32 if packed.spec.values.is_integer else packed.values.dtype
        if dtype not in INPUT_DTYPES:
            raise ValueError(f"dtype {dtype}: expected one of {', '.join(map(str, INPUT_DTYPES))}")
        if bias is not None:
            if not isinstance(bias, Tensor):
                raise TypeError(f"bias: expected a Tensor or None, got {type(bias).__name__}")
            check_bias("bias", bias, packed.spec.shape[0])
            bias = bias.detach().to(packed.values.device, copy=True)
        self.out_features, self.in_features = packed.spec.shape
        self.backend = backend
        self.name = name
        self._start(packed, bias, dtype)
        self.train(False)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        structure: str = "auto",
        values: str = "auto",
        scales: str = "row",
        activations: str = "auto",
        prune: str | None = None,
        backend: str = "auto",
    ) -> Self:
        """Compress an ``nn.Linear``, which stays as it is.

        Args:
            linear: the layer; its weight is computed with in float32.
            structure: "auto" keeps what the zeros show and prunes nothing; "dense",
                "unstructured" and "block:RxC" hold any matrix; "N:M" prunes by magnitude.
            values: "auto" is int8; or "fp32", "bf16", "fp16", "int8", "int4".
            scales: "row", "tensor" or "chunk:R" (R rows share a scale), for integer values.
            activations: "auto" is "dynamic" (uint8, a scale and a zero point per token) for
                integer values and "none" for floats; "symmetric" is int8, a scale per token.
            prune: "N:M", "unstructured@SPARSITY" or "block:RxC@SPARSITY", by magnitude.
            backend: "auto", or the backend that must run the layer.

        Raises:
            TypeError: not an ``nn.Linear``, one that computes with more than its own weight, or an
                argument that is no string.
            ValueError: contradicting strings, or a weight that is not finite.
            RuntimeError: the backend asked for cannot run the layer.
        """
        policy = Compression.parse(
            structure=structure, values=values, scales=scales, activations=activations, prune=prune
        )
        return cls.compressed(linear, policy, backend=backend)

    @classmethod
    def compressed(
        cls, linear: nn.Linear, policy: Compression, *, backend: str = "auto", name: str = "linear"
    ) -> Self:
        """:meth:`from_dense` with a policy that is already read, and a name for messages."""
        if reason := unusual(linear):
            raise TypeError(f"{name}: {reason}")
        weight = linear.weight.detach()
        try:
            packed, note = policy.apply(weight.cpu())
            packed = packed.to(weight.device)
            layer = cls(packed, linear.bias, backend=backend, dtype=weight.dtype, name=name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if note.zeroed:
            logger.info(
                "%s: pruned to %s by magnitude: %d of %d nonzeros zeroed, relative error %.3g",
                *(name, packed.spec.structure, note.zeroed, note.nonzeros, note.error),
            )
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """float [..., in_features] -> [..., out_features] in the input's type (autocast: its own).

        Raises:
            TypeError: an input that is no tensor.
            RuntimeError: training mode, an input that requires grad, or one that does not fit.
        """
        try:
            return self._run(input)
        except Exception:
            check_kind_of_tensor(self.name, input)
            raise

    def _run(self, input: Tensor) -> Tensor:
        # Small layers take microseconds: nn.Module finds what it holds only after a failed look-up,
        # and calling a module costs more than calling its forward.
        prepared = self._modules["prepared"]
        device = self._buffers["_marker"].device  # type: ignore[union-attr]
        refuse_training(self.name, self.training, input, self._parameters["bias"])
        check_input(self.name, input, self.in_features, device)
        if prepared is None:
            raise RuntimeError(
                f"{self.name}: not prepared on {device}: fill a layer that came from "
                "the meta device with load_state_dict(), or move it to where its backend runs"
            )
        is_matrix = input.ndim == 2
        y = prepared.forward(input if is_matrix else input.reshape(-1, self.in_features))
        kind = device.type
        if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
            y = y.to(torch.get_autocast_dtype(kind))  # PyTorch's autocast leaves float64 alone
        return y if is_matrix else y.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The arguments that tell one layer from another, and what runs it."""
        act, runs = self.spec.activations, self.prepared
        parts = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "structure": self.spec.structure,
            "values": self.spec.values.dtype,
            "activations": "none" if act is None else f"{act.scheme} {act.dtype}",
            "runs": "nothing" if runs is None else runs.candidate,
        }
        return ", ".join(f"{key}={value}" for key, value in parts.items())

    def __repr__(self) -> str:
        # Without the prepared layout, which nn.Module would print as a child.
        return f"{self._get_name()}({self.extra_repr()})"
