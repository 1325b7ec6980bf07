"""How a scheme quantizes the input and the output of a layer.

Source: compressed-tensors 0.20, quantization/lifecycle/forward.py and utils/helpers.py. Dynamic:
``scale = max|x| / 127.5``, ``q = round_half_even(clamp(x / scale, -128, 127))``. Static, symmetric:
the same with a stored scale. Static with a zero point: what is packed rounds before the zero point
is added, as ONNX does; the package's own simulation adds it first, which differs in ties alone.
"""

from __future__ import annotations

from ....spec import DYNAMIC_ACTIVATIONS, ActivationSpec
from ...draft import FLOATS, Draft
from ...errors import CheckpointError
from ...options import one_of
from ..scales import check_layout, load_zero_points, static_int8
from .schemes import Arguments, Scheme

_ONE = ((1,), (), (1, 1))


def read_activations(
    draft: Draft, module: str, scheme: Scheme, *, integer_weight: bool
) -> tuple[ActivationSpec | None, ActivationSpec | None]:
    """(inputs, outputs) of a module; takes their scales out of the draft.

    Args:
        draft: the checkpoint.
        module: its name.
        scheme: what the config says of it.
        integer_weight: whether the weight stays in integers.

    Raises:
        CheckpointError: scales are missing or damaged; or the scheme has no counterpart here and
            the user has not said what to do instead.
    """
    why = _obstacle(scheme, integer_weight)
    if why is None:
        inputs = _read(draft, module, "input", scheme.inputs, scheme.omits_zeros)
        return inputs, _read(draft, module, "output", scheme.outputs, scheme.omits_zeros)
    choices = ("none", *DYNAMIC_ACTIVATIONS) if integer_weight else ("none",)
    explanation = (
        f"{draft.where}: {module} has activations that cannot be computed here as they were in "
        f"training ({why}); 'none' keeps the weights exactly as they are and multiplies them with "
        "float activations"
    )
    if integer_weight:
        explanation += ", 'dynamic' (uint8) and 'symmetric' (int8) quantize each token by itself"
    chosen = draft.options.ask("activations", one_of(*choices), explanation, "none")
    names = [f"{module}.{side}_{part}" for side in ("input", "output") for part in _PARTS]
    draft.drop((n for n in names if n in draft.tensors), f"activations={chosen} was asked for")
    return DYNAMIC_ACTIVATIONS.get(chosen), None


_PARTS = ("scale", "zero_point")


def _obstacle(scheme: Scheme, integer_weight: bool) -> str | None:
    """Why a scheme's activations cannot be stated, or None."""
    inputs, outputs = scheme.inputs, scheme.outputs
    if inputs is None and outputs is None:
        return None
    if inputs is None:
        return f"outputs quantized ({outputs}) and inputs not"
    if not integer_weight:
        return f"inputs {inputs}, beside weights that are no integers"
    if not _can_be_read(inputs):
        return f"inputs {inputs}"
    if outputs is not None and (outputs.dynamic or inputs.dynamic or not _can_be_read(outputs)):
        return f"inputs {inputs}; outputs {outputs}"
    return None


def _can_be_read(arguments: Arguments) -> bool:
    if (arguments.type, arguments.bits) != ("int", 8):
        return False
    if arguments.dynamic:
        plain = arguments.symmetric and arguments.scale_dtype is None
        return plain and arguments.strategy == "token"
    return arguments.strategy == "tensor"


def _read(
    draft: Draft, module: str, side: str, arguments: Arguments | None, omits_zeros: bool
) -> ActivationSpec | None:
    if arguments is None:
        return None
    if arguments.dynamic:
        return ActivationSpec("dynamic", "int8", narrow_range=False)
    name = f"{module}.{side}_scale"
    stored = draft.take(name)
    check_layout(name, stored, _ONE, FLOATS)
    zero_point = _zero_point(draft, module, side, arguments, omits_zeros)
    return static_int8(name, stored, zero_point)


def _zero_point(
    draft: Draft, module: str, side: str, arguments: Arguments, omits_zeros: bool
) -> int:
    name = f"{module}.{side}_zero_point"
    if (arguments.symmetric or omits_zeros) and name not in draft.tensors:
        return 0
    stored = draft.take(name)
    check_layout(name, stored, _ONE, ("int8",))
    zero_point = int(load_zero_points(name, stored))
    if arguments.symmetric and zero_point:
        raise CheckpointError(
            f"{name}: expected 0, as the config states symmetric values, got {zero_point}"
        )
    return zero_point
