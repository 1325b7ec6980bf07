"""measure_sensitivity(): how much the outputs change when one layer takes a format, and no more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .calibrate import calibration_batches, longest
from .layer_format import LayerFormat
from .loading import open_source
from .plan_state import PlanState
from .plans import CANDIDATES, compared
from .sensitivity import SensitivityTable, sensitivity, units_of
from .sensitivity_files import short_name
from .solvers import METHODS, Method, SolverOptions
from .state import LayerStates, fingerprint

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SensitivityReport:
    """What :func:`measure_sensitivity` found.

    Attributes:
        source: hub id, or name of the source directory or of the model's class.
        arguments: as they were asked for.
        table: the error of every layer in every format; ``table.save("figure.svg")`` writes it.
        texts: calibration texts.
        seconds: wall time.
    """

    source: str
    arguments: dict[str, Any]
    table: SensitivityTable
    texts: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "source": self.source,
            "arguments": self.arguments,
            "sensitivity": self.table.to_dict(),
            "texts": self.texts,
            "seconds": self.seconds,
        }

    def __rich__(self) -> Table:
        """A row a layer, a column a format."""
        from rich import box
        from rich.table import Table

        title = f"{self.source}: change of the outputs, {self.texts:,} texts, {self.seconds:.1f} s"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        table.add_column("layer")
        for choice in self.table.formats:
            table.add_column(str(choice), justify="right")
        for unit in self.table.units:
            errors = (f"{self.table.error(unit, choice):.2e}" for choice in self.table.formats)
            table.add_row(short_name(unit), *errors)
        return table


@contextmanager
def _modes_kept(source: str | Path | nn.Module) -> Iterator[None]:
    """A model given as such trains again afterwards, where it did."""
    modules = source.modules() if isinstance(source, nn.Module) else ()
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def measure_sensitivity(
    source: str | Path | nn.Module,
    *,
    calibration: Sequence[str],
    formats: Sequence[str] = CANDIDATES,
    method: Method = "obs",
    options: SolverOptions | None = None,
    fused: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 256,
    batch_size: int = 32,
    state_dir: str | Path | None = None,
    progress: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> SensitivityReport:
    """Give each layer each format alone, and compare the model's outputs with the unchanged ones.

    A number is the sum of squared differences over the sum of squares, padding left out, on about
    four batches of the texts: 0 is no change, 1 as much as the outputs themselves. Weights are
    judged; inputs are not quantized. The model is left as it was.

    Args:
        source: as for ``prune``.
        calibration: texts like those the model will read.
        formats: such as "dense int8" or "2:4 int4".
        method: how weights are found, as for ``prune``.
        options: of the solver.
        fused: take queries, keys and values together.
        tokenizer: of a model that is given as such.
        max_length: tokens to truncate a text to.
        batch_size: texts run at a time.
        state_dir: keep every number there as it is found, and go on from those that it holds.
        progress: show a progress bar; None shows it where stderr is a terminal.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Raises:
        ValueError: arguments that are not understood, or the state of another run.
    """
    start = time.perf_counter()
    choices = [LayerFormat.parse(text) for text in formats]
    if not choices:
        raise ValueError("formats (--formats): expected at least one, such as 'dense int8'")
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(map(repr, METHODS))}")
    with _modes_kept(source):
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        opened = open_source(source, tokenizer, local_files_only=local_files_only, **hub)
        arguments: dict[str, Any] = {
            "formats": [str(choice) for choice in choices],
            "method": method,
            "options": asdict(options or SolverOptions()),
            "fused": fused,
            "max_length": max_length,
            "batch_size": batch_size,
        }
        length = longest(opened.model, opened.tokenizer, max_length)
        batches = calibration_batches(
            opened.tokenizer, calibration, max_length=length, batch_size=batch_size
        )
        state = PlanState(None)
        if state_dir is not None:
            made = fingerprint(opened.model, calibration, sensitivity=arguments)
            state = PlanState.of(LayerStates(state_dir, made))
        table = sensitivity(
            opened.model,
            batches,
            choices,
            units=units_of(opened.model, fused=fused),
            method=method,
            options=options,
            evaluation=compared(batches),
            known=state.rows(),
            keep=state.add,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    return SensitivityReport(opened.name, arguments, table, len(calibration), seconds)
