"""Layouts that are recognised and refused: their tensors are not the weights themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import CheckpointError, listed

# Endings of tensor names -> who writes them and what to do today.
_FOREIGN = (
    (
        r"\.(weight|input|output)_fake_quant(\..*)?|\.fake_quant_enabled",
        "quantization-aware training",
        "export the float weights",
    ),
    (
        r"\.\w*mask_scores?",
        "movement pruning",
        "binarize it and save the masked weights",
    ),
    (r"\.binary_mask|__nncf_hooks\..*", "NNCF", "strip the model with nncf.strip and save it"),
    (
        r"\.(weight_packed|weight_scale|weight_zero_point|weight_shape|weight_g_idx|input_scale"
        r"|input_zero_point|compressed|bitmask|row_offsets|scale_packed|meta)",
        "compressed-tensors",
        "put the config.json beside it that it was saved with",
    ),
    (
        r"\._weight_(qdata|scale|zero_point)",
        "torchao",
        "put the config.json beside it that it was saved with",
    ),
    (
        r"\.(SCB|weight_format)",
        "bitsandbytes",
        "put the config.json beside it that it was saved with",
    ),
    (r"\.(qweight|qzeros|g_idx)", "GPTQ or AWQ", "convert the float checkpoint"),
    (
        r"\.lora_((embedding_)?[AB]|magnitude_vector)(\..*)?",
        "a LoRA adapter",
        "merge it into the base model",
    ),
    (
        r"\.parametrizations\..*",
        "torch.nn.utils.parametrize",
        "call remove_parametrizations before saving",
    ),
)
# Layouts that are read where config.json says how.
_STATED = ("compressed-tensors", "torchao", "bitsandbytes")
_PATTERNS = [(re.compile(rf".*({ending})"), who, advice) for ending, who, advice in _FOREIGN]


def refuse_foreign(where: str, names: Iterable[str]) -> None:
    """Raise CheckpointError when tensor names belong to a layout that is not read yet."""
    names = list(names)
    _refuse_replaced(where, set(names))
    for pattern, who, advice in _PATTERNS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            why = "config.json does not state" if who in _STATED else "is not supported yet"
            raise CheckpointError(
                f"{where}: {len(found)} tensors are in the layout of {who} ({listed(found)}), "
                f"which {why}; {advice}"
            )


def _refuse_replaced(where: str, names: set[str]) -> None:
    """Raise CheckpointError for packed layers that transformers saved as any other module's."""
    specs = [name for name in names if name.endswith("._extra_state")]
    layers = [name.removesuffix("._extra_state") for name in specs]
    found = [f"{layer}.values" for layer in layers if f"{layer}.values" in names]
    if found:
        raise CheckpointError(
            f"{where}: a model saved after sparse_runtime.replace_linears ({listed(sorted(found))} "
            "beside _extra_state), whose config.json does not describe its packed layers; load the "
            "float checkpoint with quantization_config=sparse_runtime.SparseRuntimeConfig() and "
            "save that (docs/integrations.md), or convert the float checkpoint"
        )
