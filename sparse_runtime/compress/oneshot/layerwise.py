"""Solve every linear layer of a model, in the order in which inputs pass through them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.errors import listed
from ...spec import ValueSpec
from ..patterns import Pattern, sparsity
from ..targets import EncoderLayer, encoder_linears
from .calibrate import Stage, walk
from .channels import ALL, Channels, live_channels
from .hessian import InputStatistics
from .problem import make_problem
from .solvers import Method, SolvedLinear, SolverOptions, solve
from .state import LayerStates


@dataclass(frozen=True)
class Format:
    """What one linear layer becomes.

    Attributes:
        pattern: what is pruned, or None.
        values: int8 or int4, or None for floats as they are.
    """

    pattern: Pattern | None
    values: ValueSpec | None


@dataclass(frozen=True)
class LayerRow:
    """One linear layer in the report.

    Attributes:
        name: of the module.
        shape: (out_features, in_features).
        pattern: such as "2:4", or None.
        values: such as "int8", or None for floats.
        sparsity: share of zeros in the result.
        error: relative output error on the calibration texts; 1 would be outputs of nothing.
        magnitude_error: the same had the layer been pruned by magnitude and rounded to nearest.
        seconds: time to solve it.
    """

    name: str
    shape: tuple[int, int]
    pattern: str | None
    values: str | None
    sparsity: float
    error: float
    magnitude_error: float
    seconds: float


@dataclass(frozen=True)
class LayerwiseResult:
    """What became of a model's layers.

    Attributes:
        rows: one a layer, in the order of the network.
        scales: float32 scales of the layers with integer values, by name.
    """

    rows: list[LayerRow]
    scales: dict[str, Tensor]


def compress_layers(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    formats: Mapping[str, Format],
    *,
    method: Method = "alps",
    options: SolverOptions | None = None,
    follow_dense: bool = True,
    states: LayerStates | None = None,
    crop: bool = False,
    progress: bool | None = None,
) -> LayerwiseResult:
    """Prune and quantize the linear layers of an encoder, in place.

    Args:
        model: a transformers encoder in float32 and eval mode.
        batches: as ``calibrate.calibration_batches`` gives them.
        formats: by module name; layers that are not named stay as they are.
        method: how masks are chosen, see ``solvers.solve``.
        options: of the solver.
        follow_dense: aim at the outputs of the unchanged network, not only at those of the
            unchanged layer on changed inputs; costs a second forward pass and a layer's memory.
        states: where finished layers are kept, so that a run that was stopped goes on.
        crop: solve what is left of the layers without heads and neurons that are zeros, so that
            patterns are those of the matrices that ``convert`` crops.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: a name is no linear layer of the encoder, or a layer cannot be solved; the
            message names it.
    """
    known = encoder_linears(model)
    unknown = [name for name in formats if name not in known]
    if unknown:
        raise ValueError(
            f"formats: {listed(unknown)} is no linear layer of the encoder; expected names such as "
            f"{listed(known, 3)}"
        )
    chosen = (options or SolverOptions()).of(method)
    # A layer that is only masked has no use for targets.
    follow_dense = follow_dense and bool(chosen.update)
    live = live_channels(model) if crop else {}
    run = _Run(formats, method, chosen, states, live)
    walk(
        model,
        batches,
        run.visit,
        follow_dense=follow_dense,
        resume=run.resume,
        finish=run.finish,
        progress=progress,
    )
    return LayerwiseResult(run.rows, run.scales)


class _Run:
    """The visits of one walk and what they gather."""

    def __init__(
        self,
        formats: Mapping[str, Format],
        method: Method,
        options: SolverOptions,
        states: LayerStates | None,
        live: Mapping[str, Channels],
    ) -> None:
        self._formats, self._method, self._options = formats, method, options
        self._states, self._live = states, live
        self.rows: list[LayerRow] = []
        self.scales: dict[str, Tensor] = {}

    def visit(self, stage: Stage, statistics: InputStatistics) -> None:
        for name, linear in stage.linears.items():
            if name not in self._formats:
                continue
            start = time.perf_counter()
            wanted, left = self._formats[name], self._live.get(name, ALL)
            try:
                solved = solve_linear(
                    name,
                    linear,
                    statistics,
                    wanted,
                    left,
                    method=self._method,
                    options=self._options,
                )
                compared = _magnitude_error(name, linear, statistics, wanted, left, self._options)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            install(linear, solved)
            if solved.scales is not None:
                self.scales[name] = solved.scales
            self.rows.append(
                LayerRow(
                    name=name,
                    shape=(linear.out_features, linear.in_features),
                    pattern=None if wanted.pattern is None else str(wanted.pattern),
                    values=None if wanted.values is None else wanted.values.dtype,
                    sparsity=sparsity(solved.weight),
                    error=solved.error,
                    magnitude_error=compared,
                    seconds=time.perf_counter() - start,
                )
            )

    def resume(self, layer: EncoderLayer) -> bool:
        if not self._formats.keys() & set(layer.names.values()):
            return True  # nothing of it is asked for
        if self._states is None or not self._states.has(layer.index):
            return False
        rows, scales = self._states.restore(layer)
        self.rows += [LayerRow(**{**row, "shape": tuple(row["shape"])}) for row in rows]
        self.scales |= scales
        return True

    def finish(self, layer: EncoderLayer) -> None:
        if self._states is None:
            return
        names = set(layer.names.values())
        rows: list[dict[str, Any]] = [asdict(row) for row in self.rows if row.name in names]
        scales = {name: scale for name, scale in self.scales.items() if name in names}
        self._states.keep(layer, rows, scales)


def solve_linear(
    name: str,
    linear: nn.Linear,
    statistics: InputStatistics,
    wanted: Format,
    left: Channels = ALL,
    *,
    method: Method,
    options: SolverOptions | None,
) -> SolvedLinear:
    """A layer in a format, by :func:`~.solvers.solve`; the layer is left as it is.

    Args:
        name: of the layer.
        linear: the layer.
        statistics: of its inputs.
        wanted: what it becomes.
        left: its rows and columns that are no zeros, which alone are solved.
        method: as ``solve`` takes it.
        options: of the solver.
    """
    left = left.fitting(wanted.values)
    solved = solve(
        name,
        left.of(linear.weight),
        left.inputs(name, statistics),
        wanted.pattern,
        method=method,
        values=wanted.values,
        options=options,
        has_bias=linear.bias is not None,
    )
    tensor_scale = wanted.values is not None and wanted.values.granularity == "tensor"
    return left.spread(solved, linear.weight.shape, tensor_scale=tensor_scale)


def install(linear: nn.Linear, solved: SolvedLinear) -> None:
    """Write a solved weight, and the bias that goes with it, into a layer."""
    with torch.no_grad():
        linear.weight.copy_(solved.weight)
        if solved.bias_shift is not None:
            linear.bias.add_(solved.bias_shift.to(linear.bias))


def _magnitude_error(
    name: str,
    linear: nn.Linear,
    statistics: InputStatistics,
    wanted: Format,
    left: Channels,
    options: SolverOptions,
) -> float:
    """What pruning by magnitude and rounding to nearest would have cost this layer.

    Measured as the chosen method's error is: against the same target, with the same freedom of
    the bias.
    """
    left = left.fitting(wanted.values)
    weight, statistics = left.of(linear.weight), left.inputs(name, statistics)
    plain = solve(
        name, weight, statistics, wanted.pattern, method="magnitude", values=wanted.values
    )
    problem = make_problem(
        name,
        weight,
        statistics,
        damping=options.damping,
        centred=options.correct_bias and bool(options.update),
    )
    with torch.no_grad():
        return problem.relative_error(plain.weight)
