"""The products of attention that SparseML quantizes: ``QATMatMul`` in its ``QATWrapper``.

``attention_scores_matmul`` multiplies queries (stub 0) and keys (stub 1), ``context_layer_matmul``
probabilities (0) and values (1). ``input_quant_stubs.I`` quantizes an operand,
``output_quant_stubs.0`` the result.

Source: neuralmagic/sparseml, transformers/sparsification/modification/modifying_bert.py.
"""

from __future__ import annotations

import re
from collections import Counter

from ...spec import ActivationSpec, QuantizedAttention
from ..draft import Draft
from ..errors import CheckpointError, listed
from .fake_quant import activation_type, take_quantizer

_MATMUL = re.compile(
    r"(?P<layer>(?:.+\.)?layer\.\d+)\.attention\.self\.(?P<product>\w+)_matmul"
    r"\.(?P<stub>(?:input|output)_quant_stubs\.\d+)\.activation_post_process"
)
_ROLES = {
    ("attention_scores", "input_quant_stubs.0"): "query",
    ("attention_scores", "input_quant_stubs.1"): "key",
    ("attention_scores", "output_quant_stubs.0"): "scores",
    ("context_layer", "input_quant_stubs.0"): "probabilities",
    ("context_layer", "input_quant_stubs.1"): "value",
    ("context_layer", "output_quant_stubs.0"): "context",
}


def take_products(draft: Draft) -> Counter[str]:
    """Take the quantizers of attention away and describe them in ``draft.attention``.

    Returns:
        What was found, and in how many layers.

    Raises:
        CheckpointError: a stub has no place in the attention of BERT.
    """
    pattern = re.compile(r"(?P<group>.+_quant_stubs\.\d+\.activation_post_process)\..+")
    groups = dict.fromkeys(
        found["group"] for name in draft.tensors if (found := pattern.fullmatch(name))
    )
    layers: dict[str, dict[str, ActivationSpec]] = {}
    done: Counter[str] = Counter()
    for group in groups:
        place = _MATMUL.fullmatch(group)
        role = _ROLES.get((place["product"], place["stub"])) if place else None
        quantizer = take_quantizer(draft, group)
        if quantizer is None:
            continue
        if place is None or role is None:
            raise CheckpointError(
                f"{group}: expected quantized products such as "
                "'layer.0.attention.self.attention_scores_matmul.input_quant_stubs.0' "
                f"(with {listed({stub for _, stub in _ROLES})}); other wrapped modules cannot be "
                "represented"
            )
        spec = quantizer.static(activation_type(draft, quantizer))
        layers.setdefault(place["layer"], {})[role] = spec
        done[f"attention: {role} static {spec.dtype}"] += 1
    draft.attention |= {layer: QuantizedAttention(**roles) for layer, roles in layers.items()}
    return done
