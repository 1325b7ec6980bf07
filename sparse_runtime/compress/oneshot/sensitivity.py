"""How much a model's outputs change when one layer alone takes a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..targets import EncoderLayer, layers
from .calibrate import Stage, walk
from .channels import ALL, live_channels
from .hessian import InputStatistics
from .layer_format import LayerFormat
from .layerwise import install
from .outputs import judged, without_padding
from .sensitivity_files import draw_sensitivity, save_sensitivity
from .solvers import Method, SolverOptions

Metric = Callable[[Any, Any, dict[str, Tensor]], float]
"""(outputs, outputs of the unchanged model, inputs) -> a number that adds up over batches"""


@dataclass(frozen=True)
class Sensitivity:
    """What one choice costs.

    Attributes:
        unit: the layers that take the format together, joined by " + ".
        format: what they become.
        error: the change of the outputs, by the metric: by default the sum of squares over that of
            the outputs themselves.
    """

    unit: str
    format: LayerFormat
    error: float


@dataclass(frozen=True)
class SensitivityTable:
    """Every unit with every format."""

    rows: tuple[Sensitivity, ...]

    @property
    def units(self) -> list[str]:
        """Names, first to last."""
        return list(dict.fromkeys(row.unit for row in self.rows))

    @property
    def formats(self) -> list[LayerFormat]:
        """Formats, in the order given."""
        return list(dict.fromkeys(row.format for row in self.rows))

    def error(self, unit: str, choice: LayerFormat) -> float:
        """The error of one choice."""
        return self._errors[unit, choice]

    @cached_property
    def _errors(self) -> dict[tuple[str, LayerFormat], float]:
        return {(row.unit, row.format): row.error for row in self.rows}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """JSON form: unit -> format -> error."""
        return {
            unit: {str(choice): self.error(unit, choice) for choice in self.formats}
            for unit in self.units
        }

    def plot(self, path: str | Path) -> None:
        """Draw the errors, a line a format, into a PNG or SVG file.

        Raises:
            ImportError: matplotlib is not installed (extra "plot").
        """
        draw_sensitivity(self, path)

    def save(self, path: str | Path) -> None:
        """Draw them, and write the numbers into a JSON file beside.

        Raises:
            ValueError: the name is none of a figure's.
            FileExistsError: one of the two files is there.
            ImportError: matplotlib is not installed (extra "plot").
        """
        save_sensitivity(self, path)


def units_of(model: nn.Module, *, fused: bool = False) -> dict[str, tuple[str, ...]]:
    """The layers that are decided on together, by the name of the unit.

    Args:
        model: a transformers encoder.
        fused: queries, keys and values as one, since they are run as one product.
    """
    units: dict[str, tuple[str, ...]] = {}
    for layer in layers(model):
        names = [layer.names[part] for part in ("query", "key", "value")]
        rest = [layer.names[part] for part in ("attention_output", "ffn_in", "ffn_out")]
        first = [tuple(names)] if fused else [(name,) for name in names]
        for members in [*first, *((name,) for name in rest)]:
            units[" + ".join(members)] = members
    return units


def sensitivity(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    formats: Sequence[LayerFormat],
    *,
    units: dict[str, tuple[str, ...]] | None = None,
    method: Method = "obs",
    options: SolverOptions | None = None,
    metric: Metric | None = None,
    evaluation: Sequence[dict[str, Tensor]] | None = None,
    known: Sequence[Sensitivity] = (),
    keep: Callable[[Sensitivity], None] | None = None,
    progress: bool | None = None,
) -> SensitivityTable:
    """Give each unit each format in turn, everything else unchanged, and compare the outputs.

    Weights are found on the unchanged model's inputs. Inputs are not quantized: what is compared
    are the weights. The model is left as it was.

    Args:
        model: a transformers encoder in eval mode.
        batches: calibration inputs, with "attention_mask".
        formats: at least one.
        units: of :func:`units_of`; None takes every linear layer by itself.
        method: how weights are found, as in :func:`~.solvers.solve`.
        options: of the solver.
        metric: None is :func:`squared_change` over the sum of squares of the outputs themselves.
        evaluation: inputs to compare outputs on; None takes ``batches``.
        known: rows of an earlier run, which are not measured again.
        keep: told every row that is measured.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: no formats.
    """
    if not formats:
        raise ValueError("formats: expected at least one")
    members = units_of(model) if units is None else units
    by_name = {name: unit for unit, names in members.items() for name in names}
    live = live_channels(model)
    done = {(row.unit, row.format): row for row in known}

    def finished(layer: EncoderLayer) -> bool:
        units = {by_name[name] for name in layer.names.values() if name in by_name}
        return all((unit, choice) in done for unit in units for choice in formats)

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        for unit in dict.fromkeys(by_name[name] for name in stage.linears if name in by_name):
            linears = {name: stage.linears[name] for name in members[unit]}
            for choice in formats:
                if (unit, choice) in done:
                    continue
                with _restored(linears.values()):
                    for name, linear in linears.items():
                        solved = choice.solve(
                            name,
                            linear,
                            statistics,
                            live.get(name, ALL),
                            method=method,
                            options=options,
                        )
                        install(linear, solved)
                    row = done[unit, choice] = Sensitivity(unit, choice, compare())
                if keep is not None:
                    keep(row)

    if not all((unit, choice) in done for unit in members for choice in formats):
        compare = _Comparison(model, batches if evaluation is None else evaluation, metric)
        walk(model, batches, visit, resume=finished, progress=progress)
    return SensitivityTable(tuple(done[unit, choice] for unit in members for choice in formats))


@contextmanager
def _restored(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Give layers their weights and biases back, whatever ends the block."""
    before = [(linear, clone_parameters(linear)) for linear in linears]
    try:
        yield
    finally:
        for linear, state in before:
            linear.load_state_dict(state)


def clone_parameters(linear: nn.Linear) -> dict[str, Tensor]:
    """A copy of a layer's state dict."""
    return {name: tensor.clone() for name, tensor in linear.state_dict().items()}


def squared_change(outputs: Any, dense: Any, batch: dict[str, Tensor]) -> float:
    """Sum of squared differences of what models are judged by, padding left out."""
    away = judged(outputs) - judged(dense)
    return float(without_padding(away, batch).double().square().sum())


class _Comparison:
    """A model's outputs against those it had when this was made."""

    def __init__(
        self, model: nn.Module, batches: Sequence[dict[str, Tensor]], metric: Metric | None
    ) -> None:
        self._model, self._batches = model, batches
        self._metric = squared_change if metric is None else metric
        with torch.no_grad():
            self._dense = [model(**batch) for batch in batches]
        # The default is a share; a metric of the caller's own stays as it is.
        self._scale = 1.0
        if metric is None:
            pairs = zip(self._dense, batches, strict=True)
            self._scale = sum(
                float(without_padding(judged(out), batch).double().square().sum())
                for out, batch in pairs
            )

    def __call__(self) -> float:
        total = 0.0
        with torch.no_grad():
            for dense, batch in zip(self._dense, self._batches, strict=True):
                total += self._metric(self._model(**batch), dense, batch)
        return total / self._scale
