"""What one compressed linear layer is: a logical shape, a structure, a value type, activations.

A weight is *structure x values* (docs/formats): the structure says which positions may be nonzero,
the values say how the kept numbers are written. The two axes are independent, so there is one
class per axis and never one class per combination.
"""

from __future__ import annotations

from .activations import DYNAMIC_ACTIVATIONS, ActivationSpec
from .attention import QuantizedAttention
from .functions import FUNCTIONS
from .linear import MAX_ELEMENTS, LinearSpec
from .structure import MAX_BLOCK, Structure, StructureKind
from .values import FLOAT_DTYPES, INTEGER_RANGES, VALUE_DTYPES, Granularity, ValueSpec

__all__ = [
    "DYNAMIC_ACTIVATIONS",
    "FLOAT_DTYPES",
    "FUNCTIONS",
    "INTEGER_RANGES",
    "MAX_BLOCK",
    "MAX_ELEMENTS",
    "VALUE_DTYPES",
    "ActivationSpec",
    "Granularity",
    "LinearSpec",
    "QuantizedAttention",
    "Structure",
    "StructureKind",
    "ValueSpec",
]
