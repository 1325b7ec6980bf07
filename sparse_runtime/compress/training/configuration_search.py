"""Which format for which part of an encoder: candidates, their sizes, one-shot scores, the best.

Source: NxMiFormer (arXiv 2206.15014), its configuration search. Five options for each of six
component types, the same in every layer, are 15,625 candidates; those that are too large go, the
rest is projected in one shot, scored without any training, and only the best are trained.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from ..masks import original_weight
from ..targets import COMPONENTS, component
from .one_shot_scores import OPTIONS, Configuration, OneShot, Option, Scored, losses_alone


def component_sizes(linears: Mapping[str, nn.Linear]) -> dict[str, int]:
    """Weights of each component over all layers, in the order of ``COMPONENTS``."""
    sizes: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
    for name, linear in linears.items():
        sizes[component(name)] += original_weight(linear).numel()
    return {part: size for part, size in sizes.items() if size}


def candidates(
    parts: Sequence[str], options: Sequence[Option] = OPTIONS
) -> Iterator[dict[str, Option]]:
    """Every choice of one option for each part."""
    for chosen in itertools.product(options, repeat=len(parts)):
        yield dict(zip(parts, chosen, strict=True))


def compression_ratio(
    configuration: Configuration, sizes: Mapping[str, int], *, index: bool = True
) -> float:
    """Size of the compressed matrices over that of the same in FP32.

    Args:
        configuration: an option for each part of ``sizes``.
        sizes: weights of each part.
        index: count the index of sparse matrices too.
    """
    bits = sum(size * configuration[part].bits(index=index) for part, size in sizes.items())
    return bits / (32 * sum(sizes.values()))


def within_ratio(
    sizes: Mapping[str, int],
    limit: float,
    *,
    options: Sequence[Option] = OPTIONS,
    index: bool = True,
) -> list[dict[str, Option]]:
    """The candidates whose compression ratio is at most ``limit``."""
    return [
        one
        for one in candidates(list(sizes), options)
        if compression_ratio(one, sizes, index=index) <= limit
    ]


def search(
    linears: Mapping[str, nn.Linear],
    evaluate: Callable[[], float],
    limit: float,
    *,
    options: Sequence[Option] = OPTIONS,
    index: bool = True,
    top: int = 5,
    evaluations: int | None = None,
    progress: bool = False,
) -> list[Scored]:
    """The paper's search: the same option in every layer for each component type.

    Args:
        linears: by name; they are as before when it returns.
        evaluate: score of the model as it stands, higher is better, such as the accuracy on a
            part of the development set.
        limit: largest compression ratio.
        options: to choose from.
        index: count the index of sparse matrices.
        top: how many to give back.
        evaluations: score only so many of the candidates: those of the least loss if the losses
            of the components, each measured alone, added up. None scores all of them, as in the
            paper.
        progress: show a progress bar.

    Returns:
        The best first; equal scores by their size.

    Raises:
        ValueError: no candidate is small enough.
    """
    sizes = component_sizes(linears)
    left = within_ratio(sizes, limit, options=options, index=index)
    if not left:
        least = min(option.bits(index=index) for option in options) / 32
        raise ValueError(f"limit {limit}: no candidate is that small; the least is {least:g}")
    parts = {name: component(name) for name in linears}
    model = OneShot(linears, evaluate)
    if evaluations is not None and evaluations < len(left):
        losses = losses_alone(model, parts, options, progress)
        left.sort(key=lambda one: sum(losses[part][option] for part, option in one.items()))
        left = left[:evaluations]
    scored = [
        Scored(
            one,
            compression_ratio(one, sizes, index=index),
            model.score({name: one[part] for name, part in parts.items()}),
        )
        for one in tqdm(left, desc="configurations", disable=not progress)
    ]
    return sorted(scored, key=lambda one: (-one.score, one.cost))[:top]


def recipe_sections(configuration: Configuration) -> tuple[dict[str, Any], dict[str, Any]]:
    """``per`` of a recipe's sections ``pruning`` and ``quantization`` for a configuration.

    Names of matrices become regular expressions that match them alone.
    """
    keys = {part: part if part in COMPONENTS else f"^{re.escape(part)}$" for part in configuration}
    pruning = {
        keys[part]: None if option.structure is None else str(option.structure)
        for part, option in configuration.items()
    }
    quantization = {
        keys[part]: option.values.dtype if option.values.is_integer else None
        for part, option in configuration.items()
    }
    return pruning, quantization
