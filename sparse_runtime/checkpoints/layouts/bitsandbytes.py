"""bitsandbytes' LLM.int8(): ``X.weight`` int8 beside ``X.SCB``, the largest magnitude of each row.

Source: bitsandbytes 0.50, nn/modules.py, autograd/_functions.py, backends/default/ops.py; Dettmers
et al., "LLM.int8()" (2022). ``w = weight * (SCB * (1 / 127))`` in float32. It casts the input to
float16, keeps its columns with a magnitude above ``llm_int8_threshold`` in floats, and quantizes
the rest of each token to int8 over -127..127; in training on the CPU it multiplies in floats. Which
columns are kept depends on the whole batch, so that there is no counterpart here: the user says
which of the two the packed model does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...spec import DYNAMIC_ACTIVATIONS, ValueSpec
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..naming import kind_of
from ..options import one_of
from ..quantized import QuantizedLinear, QuantizedValues
from .base import Layout
from .scales import check_layout

_FOUR_BITS = r".+\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"


def _recognise(draft: Draft) -> str | None:
    section = draft.config.get("quantization_config")
    if not isinstance(section, Mapping) or not (_modules(draft) or draft.names(_FOUR_BITS)):
        return None
    method = section.get("quant_method")
    # Before transformers 4.35 no method was named.
    told = [key for key in ("load_in_8bit", "load_in_4bit") if method is None and section.get(key)]
    if method == "bitsandbytes":
        told = ["quant_method"]
    return f"{told[0]} of config.json" if told else None


def _modules(draft: Draft) -> list[str]:
    # A format without magnitudes is a module too, of an incomplete file.
    return list(dict.fromkeys(draft.modules("SCB") + draft.modules("weight_format")))


def _finalise(draft: Draft) -> None:
    four_bits = draft.names(_FOUR_BITS)
    if four_bits:
        raise CheckpointError(
            f"{draft.where}: {len(four_bits)} tensors are of bitsandbytes' 4-bit layout "
            f"({listed(four_bits, 2)}), whose values are positions in a table of floats and no "
            "integers; convert the float checkpoint, or one with load_in_8bit"
        )
    modules = _modules(draft)
    threshold = draft.config["quantization_config"].get("llm_int8_threshold", 6.0)
    chosen = draft.options.ask(
        "activations",
        one_of("none", "symmetric"),
        f"{draft.where}: bitsandbytes keeps input columns with a magnitude above {threshold} of a "
        "batch in floats and quantizes the others, which has no counterpart here; 'none' "
        "multiplies the int8 weights with float activations, 'symmetric' quantizes all columns of "
        "each token to int8",
        "none",
    )
    for module in modules:
        _read_module(draft, module, chosen)
    draft.steps.append(
        f"{len(modules)} modules stay integers: int8, scale = SCB / 127, activations={chosen} as "
        "asked for"
    )
    del draft.config["quantization_config"]


def _read_module(draft: Draft, module: str, activations: str) -> None:
    weight, largest = draft.take(f"{module}.weight"), draft.take(f"{module}.SCB")
    if weight.dtype != "int8" or len(weight.shape) != 2:
        raise CheckpointError(
            f"{module}.weight: expected an int8 matrix beside SCB, got {weight.dtype} "
            f"{list(weight.shape)}; the file is damaged"
        )
    shape = (weight.shape[0], weight.shape[1])
    check_layout(f"{module}.SCB", largest, (shape[:1],), ("float32",))
    _drop_format(draft, f"{module}.weight_format")
    if kind_of(f"{module}.weight", shape) == "embedding":
        raise CheckpointError(
            f"{module}.SCB: expected linear layers, got a table; convert the float checkpoint"
        )
    linear = QuantizedLinear(
        shape=shape,
        values=ValueSpec("int8"),
        activations=DYNAMIC_ACTIVATIONS.get(activations),
        nbytes=shape[0] * (shape[1] + 4),
        load=lambda: _load(module, weight, largest),
    )
    draft.put_linear(module, linear)


def _drop_format(draft: Draft, name: str) -> None:
    """``weight_format`` of 0, rows; older versions wrote the tiles of GPU kernels too."""
    if name not in draft.tensors:
        return
    stored = draft.tensors[name]
    if torch.Size(stored.shape).numel() != 1 or int(stored.load()) != 0:
        raise CheckpointError(
            f"{name}: expected 0, weights in rows, got another order, which one GPU kernel reads; "
            "save the model again with bitsandbytes 0.45 or later"
        )
    draft.drop([name], "weights lie in rows")


def _load(module: str, weight: LazyTensor, largest: LazyTensor) -> QuantizedValues:
    magnitudes = largest.load()
    if not bool((torch.isfinite(magnitudes) & (magnitudes >= 0)).all()):
        raise CheckpointError(
            f"{module}.SCB: expected finite magnitudes of at least 0, got others; the file is "
            "damaged"
        )
    # A row of zeros has the magnitude 0, and in its integers whatever a cast of NaN gave.
    empty = magnitudes == 0
    values = torch.where(empty.unsqueeze(1), 0, weight.load())
    scales = torch.where(empty, 1.0, magnitudes.mul(1.0 / 127.0))
    return QuantizedValues(values, scales)


LAYOUT = Layout("bitsandbytes int8", _recognise, _finalise)
