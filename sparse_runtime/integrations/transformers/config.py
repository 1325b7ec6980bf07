"""The ``quantization_config`` of packed models."""

from __future__ import annotations

from typing import Any

# Public, though the package does not list it for type checkers.
from transformers.quantizers import (  # type: ignore[attr-defined]
    register_quantization_config,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...formats import Compression
from ...store.section import QUANTIZATION

METHOD = QUANTIZATION["quant_method"]


@register_quantization_config(METHOD)
class SparseRuntimeConfig(QuantizationConfigMixin):
    """How to pack a float checkpoint while transformers loads it.

    A packed directory needs no arguments: what its layers are stands in the section
    "sparse_runtime" of its config.json.

    Attributes:
        policy: what the arguments mean.
    """

    def __init__(
        self,
        structure: str = "auto",
        values: str = "auto",
        *,
        scales: str = "row",
        activations: str = "auto",
        prune: str | None = None,
        quant_method: str = METHOD,
    ) -> None:
        """Check the arguments, which are those of :func:`sparse_runtime.convert`.

        Args:
            structure: "auto" keeps what each matrix' zeros show; "dense", "unstructured" and
                "block:RxC" hold any matrix; "N:M" prunes by magnitude what does not fit.
            values: "auto" is int8; or "fp32", "bf16", "fp16", "int8", "int4".
            scales: "row", "tensor" or "chunk:R", for integer values.
            activations: "auto", "dynamic", "symmetric" or "none".
            prune: prune by magnitude first: "N:M", "block:RxC@SPARSITY" or
                "unstructured@SPARSITY".
            quant_method: "sparse_runtime"; in config.json it is what leads here.

        Raises:
            TypeError: an argument that is no string.
            ValueError: strings that are not understood or contradict each other.
        """
        if quant_method != METHOD:
            raise ValueError(f"quant_method {quant_method!r}: expected {METHOD!r}")
        self.quant_method = quant_method  # type: ignore[assignment]  # theirs is a closed enum
        self.structure = structure
        self.values = values
        self.scales = scales
        self.activations = activations
        self.prune = prune
        Compression.parse(**self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`sparse_runtime.replace_linears`."""
        names = ("structure", "values", "scales", "activations", "prune")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The method's name, and the arguments that are not the defaults."""
        default = {
            "structure": "auto",
            "values": "auto",
            "scales": "row",
            "activations": "auto",
            "prune": None,
        }
        changed = {k: value for k, value in self.arguments.items() if value != default[k]}
        return {"quant_method": self.quant_method, **changed}
