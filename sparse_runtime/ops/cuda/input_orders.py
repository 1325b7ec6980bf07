"""An order of a layer's inputs in which more of its weight is 2:4 (docs/kernels/exact_2to4.md)."""

from __future__ import annotations

from torch import Tensor

from ...kernels.nm.input_order import find_input_order
from ..types import LinearRequest
from .candidate import CudaCandidate
from .choosing import why_not
from .exact_families import MmaExact
from .problem import problem_of
from .stacked import stack_layers

MOST_DENSITY = 0.2
"""Of weights with more nonzeros, no order leaves little beside 2:4."""

WORK = 2.5e7
"""Of the search for a layer (``find_input_order``): a third of a second at most, while a model is
loaded. It finds nearly what sixteen times as much finds."""


def input_order(request: LinearRequest, unit: int | None) -> Tensor | None:
    """Search an order for a layer that may run on sparse tensor cores, whatever else is chosen.

    It does not depend on times: a model that was tuned is the model that is loaded next.

    Args:
        request: the layer.
        unit: inputs stay within so many consecutive ones; None: they go anywhere.

    Returns:
        int64 [in]; None where the layer runs otherwise, or nothing is gained.
    """
    if CudaCandidate().rejects(request) is not None:
        return None
    matrix, epilogue, structure, problem = stack_layers(request)
    if problem.rest == 0 or problem.density > MOST_DENSITY:
        return None
    if why_not(MmaExact(), problem._replace(rest=0.0), epilogue) is not None:
        return None
    nonzero = (matrix != 0).cpu()
    order = find_input_order(nonzero, unit=unit, work=WORK)
    gained = problem_of(matrix[:, order.to(matrix.device)], structure)
    return order if gained.rest < problem.rest else None
