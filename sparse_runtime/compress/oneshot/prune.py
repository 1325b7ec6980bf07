"""prune(): a dense encoder and some text in, a pruned and quantized checkpoint out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...formats import Compression
from ...spec import ActivationSpec
from ...spec.values import INTEGER_RANGES
from ..masks import share_of_zeros
from ..patterns import Pattern
from ..statement import LinearQuantization
from ..targets import check_patterns, encoder_linears
from ..writing import check_new, write_checkpoint
from .activation_ranges import RANGE_METHODS, RangeMethod, activation_ranges
from .calibrate import calibration_batches, longest
from .layerwise import Format, LayerwiseResult, compress_layers
from .loading import open_source
from .plan_state import PlanState
from .plans import Plan
from .report import PruneReport
from .solvers import METHODS, Method, SolverOptions
from .state import LayerStates, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prune(
    source: str | Path | nn.Module,
    out_dir: str | Path | None,
    *,
    calibration: Sequence[str],
    to: str | None = None,
    method: Method = "alps",
    values: str | None = None,
    scales: str = "row",
    activations: str = "auto",
    options: SolverOptions | None = None,
    follow_dense: bool = True,
    plan: Plan | None = None,
    ranges: RangeMethod | None = None,
    include: str | None = None,
    exclude: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 256,
    batch_size: int = 32,
    state_dir: str | Path | None = None,
    progress: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> PruneReport:
    """Prune and quantize an encoder's linear layers in one pass over some text, without labels.

    Layer by layer, the outputs of the unchanged network are reconstructed as well as the format
    allows, from inputs that have gone through the layers already compressed. Writes a plain
    Hugging Face directory that ``inspect`` recognises and ``convert`` packs as it is.

    Args:
        source: a directory or hub id in any layout of docs/checkpoints.md, or a model of
            transformers in float32, which is changed in place.
        out_dir: a new or an empty directory; None writes nothing.
        calibration: texts like those the model will read; a few hundred do, more do better.
        to: "N:M", "block:RxC@SPARSITY" or "unstructured@SPARSITY"; None prunes nothing.
        method: "alps", "obs", "exact_obs", "wanda" or "magnitude"; see
            docs/compress/one_shot.md.
        values: "int8" or "int4"; None keeps floats.
        scales: weights that share a scale: "row", "tensor", "chunk:R" or "group:G".
        activations: how inputs are quantized at run time: "auto" is "dynamic" for integer values
            and "none" for floats; or "symmetric".
        options: of the solver.
        follow_dense: see :func:`~.layerwise.compress_layers`.
        plan: reorders or removes channels before, or gives layers formats of their own; see
            :mod:`.plans`. What it does to all layers excludes ``include`` and ``exclude``. Without
            ``to`` and ``values`` layers that it gives none stay as they are.
        ranges: quantize inputs with one scale and zero point for all tokens, from what the
            compressed model's layers read of the texts: "min-max", "percentile" or "mse". None
            quantizes them as ``activations`` says.
        include: regular expression; only layers in whose names it is found.
        exclude: regular expression; no layers in whose names it is found.
        tokenizer: of a model that is given as such.
        max_length: tokens to truncate a text to.
        batch_size: texts run at a time.
        state_dir: keep finished layers there, and what ``plan`` measures and chooses; and go on
            from what it holds.
        progress: show a progress bar; None shows it where stderr is a terminal.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Raises:
        ValueError: arguments that are not understood or contradict each other, or a layer that
            cannot be solved.
        FileExistsError: there is something in ``out_dir``.
    """
    start = time.perf_counter()
    check_patterns(include=include, exclude=exclude)
    wanted, inputs = _wanted(plan, to, values, scales, activations)
    if ranges is not None:
        possible = ({values} if values else set()) | (plan.values() if plan else set())
        _check_ranges(ranges, activations, possible)
    if plan is not None:
        _check_plan(plan, wanted, scales, include=include, exclude=exclude)
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(map(repr, METHODS))}")
    if out_dir is not None:
        # What writing would refuse after minutes of solving.
        check_new(Path(out_dir).expanduser())
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    opened = open_source(source, tokenizer, local_files_only=local_files_only, **hub)
    linears = encoder_linears(opened.model, include=include, exclude=exclude)
    arguments: dict[str, Any] = {
        "to": to,
        "method": method,
        "values": values,
        "scales": scales,
        "activations": activations,
        "options": asdict(options or SolverOptions()),
        "follow_dense": follow_dense,
        "include": include,
        "exclude": exclude,
        "max_length": max_length,
        "batch_size": batch_size,
        "plan": None if plan is None else plan.to_dict(),
        "ranges": ranges,
    }
    texts = list(calibration) if not isinstance(calibration, str) else calibration
    length = longest(opened.model, opened.tokenizer, max_length)
    batches = calibration_batches(opened.tokenizer, texts, max_length=length, batch_size=batch_size)
    formats = {} if wanted is None else dict.fromkeys(linears, wanted)
    states = None
    if state_dir is not None:
        states = LayerStates(state_dir, fingerprint(opened.model, texts, **arguments))
    if plan is not None:
        searched = PlanState.of(states)
        formats = plan(opened.model, batches, formats, searched)
    result = compress_layers(
        opened.model,
        batches,
        formats,
        method=method,
        options=options,
        follow_dense=follow_dense,
        states=states,
        crop=plan is not None and plan.crops(),
        progress=progress,
    )
    stated = statements(result, formats, inputs)
    notes = []
    if ranges is not None and not stated:
        notes.append(
            f"ranges {ranges!r} (--ranges): not used, for every layer has become floats, whose "
            "inputs are not quantized"
        )
    elif ranges is not None:
        read = {name: linears[name] for name in stated}
        specs = activation_ranges(opened.model, read, batches, method=ranges, progress=progress)
        stated = {name: replace(one, activations=specs[name]) for name, one in stated.items()}
    if plan is not None:
        plan.solved(stated)
    if out_dir is not None:
        write_checkpoint(
            opened.model,
            opened.tokenizer,
            out_dir,
            quantization=stated,
            record={"one_shot": {**arguments, "texts": len(texts)}, "source": opened.name},
            extra_files=opened.files,
        )
    return PruneReport(
        source=opened.name,
        directory=None if out_dir is None else str(out_dir),
        arguments=arguments,
        layers=result.rows,
        sparsity=share_of_zeros(linears),
        texts=len(texts),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
        removed=None if plan is None else plan.removed,
    )


def parse_format(
    to: str | None, values: str | None, scales: str, activations: str
) -> tuple[Format, ActivationSpec | None]:
    """The strings as what a layer becomes, and how its input is quantized.

    Raises:
        ValueError: a string is not understood, two contradict, or nothing is asked for.
    """
    if values not in (None, "int8", "int4"):
        raise ValueError(f"values {values!r}: expected 'int8' or 'int4', or none for floats")
    pattern = None if to is None else Pattern.parse(to, "to (--to)")
    policy = Compression.parse(
        values=values or "fp32", scales=scales, activations=activations, prune=to
    )
    if to is None and values is None:
        raise ValueError("prune: nothing to do; give to (--to 2:4) or values (--values int8)")
    return Format(pattern, policy.values if values else None), policy.activations


def statements(
    result: LayerwiseResult, formats: Mapping[str, Format], inputs: ActivationSpec | None
) -> dict[str, LinearQuantization]:
    """How the solved layers with integer values are quantized, by name."""
    stated = {}
    for name, scales in result.scales.items():
        values = formats[name].values
        assert values is not None  # floats have no scales
        stated[name] = LinearQuantization(values, scales, inputs)
    return stated


def _check_ranges(ranges: RangeMethod, activations: str, values: set[str]) -> None:
    if ranges not in RANGE_METHODS:
        raise ValueError(
            f"ranges {ranges!r}: expected one of {', '.join(map(repr, RANGE_METHODS))}"
        )
    if activations != "auto":
        raise ValueError(
            f"ranges {ranges!r} and activations {activations!r} exclude each other: inputs are "
            "quantized by ranges or token by token; leave one out"
        )
    if not values & INTEGER_RANGES.keys():
        raise ValueError(
            f"ranges {ranges!r} (--ranges): expected layers with integer values, got floats, whose "
            "inputs are not quantized; give values (--values int8), or leave ranges out"
        )


def _check_plan(plan: Plan, wanted: Format | None, scales: str, **patterns: str | None) -> None:
    """Refuse what the plan would not heed."""
    given = [name for name, pattern in patterns.items() if pattern is not None]
    whole = plan.of_all_layers()
    if given and whole:
        raise ValueError(
            f"{given[0]} (--{given[0]}): {whole[0]} is for all layers of the encoder; leave one of "
            "the two out"
        )
    if wanted is None and scales != "row":
        raise ValueError(
            f"scales {scales!r} (--scales): expected 'row' without to (--to) and values "
            "(--values); the formats of a target have a scale a row; leave it out"
        )


def _wanted(
    plan: Plan | None, to: str | None, values: str | None, scales: str, activations: str
) -> tuple[Format | None, ActivationSpec | None]:
    """As :func:`parse_format`; with a plan alone no format, and inputs as "auto" has them."""
    if plan is None or to is not None or values is not None:
        return parse_format(to, values, scales, activations)
    policy = Compression.parse(scales=scales, activations=activations)
    return None, policy.activations
