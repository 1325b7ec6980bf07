"""A format of its own for every layer, solved layer after layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ...spec import DYNAMIC_ACTIVATIONS
from ..statement import LinearQuantization
from .calibrate import Stage, walk
from .hessian import InputStatistics
from .layer_format import LayerFormat
from .sensitivity import install
from .solvers import Method, SolverOptions


def compress_layers(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    formats: Mapping[str, LayerFormat],
    *,
    method: Method = "obs",
    options: SolverOptions | None = None,
    progress: bool | None = None,
) -> dict[str, LinearQuantization]:
    """Bring layers to their formats in place, each fitted to the unchanged model's outputs.

    Args:
        model: a transformers encoder in eval mode.
        batches: calibration inputs, with "attention_mask".
        formats: layer name -> format; layers that are not named stay as they are.
        method: as in :func:`~.solvers.solve`.
        options: of the solver.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Returns:
        What ``write_checkpoint`` states of the layers with integer values, inputs quantized token
        by token.
    """
    stated: dict[str, LinearQuantization] = {}

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        for name, linear in stage.linears.items():
            if name not in formats:
                continue
            choice = formats[name]
            solved = choice.solve(name, linear, statistics, method=method, options=options)
            install(linear, solved)
            if solved.scales is not None:
                stated[name] = LinearQuantization(
                    choice.values, solved.scales, DYNAMIC_ACTIVATIONS["dynamic"]
                )

    walk(model, batches, visit, follow_dense=True, progress=progress)
    return stated
