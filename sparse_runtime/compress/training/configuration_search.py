"""Which format for which part of an encoder: candidates, their sizes, one-shot scores, the best.

Source: NxMiFormer (arXiv 2206.15014), its configuration search. Five options for each of six
component types, the same in every layer, are 15,625 candidates; those that are too large go, the
rest is projected in one shot, scored without any training, and only the best are trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn
from tqdm import tqdm

from ..masks import original_weight
from ..oneshot.layer_format import LayerFormat
from ..targets import COMPONENTS, component
from .one_shot_scores import (
    OPTIONS,
    Configuration,
    Found,
    OneShot,
    Scored,
    Scores,
    best_first,
    bits,
    hidden,
    losses_alone,
)


def component_sizes(linears: Mapping[str, nn.Linear]) -> dict[str, int]:
    """Weights of each component over all layers, in the order of ``COMPONENTS``."""
    sizes: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
    for name, linear in linears.items():
        sizes[component(name)] += original_weight(linear).numel()
    return {part: size for part, size in sizes.items() if size}


def candidates(
    parts: Sequence[str], options: Sequence[LayerFormat] = OPTIONS
) -> Iterator[dict[str, LayerFormat]]:
    """Every choice of one format for each part."""
    for chosen in itertools.product(options, repeat=len(parts)):
        yield dict(zip(parts, chosen, strict=True))


def compression_ratio(
    configuration: Configuration, sizes: Mapping[str, int], *, index: bool = True
) -> float:
    """Size of the compressed matrices over that of the same in FP32.

    Args:
        configuration: a format for each part of ``sizes``.
        sizes: weights of each part.
        index: count the index of sparse matrices too.
    """
    total = sum(size * bits(configuration[part], index=index) for part, size in sizes.items())
    return total / (32 * sum(sizes.values()))


def within_ratio(
    sizes: Mapping[str, int],
    limit: float,
    *,
    options: Sequence[LayerFormat] = OPTIONS,
) -> list[dict[str, LayerFormat]]:
    """The candidates whose compression ratio is at most ``limit``."""
    return [
        one for one in candidates(list(sizes), options) if compression_ratio(one, sizes) <= limit
    ]


def search(
    linears: Mapping[str, nn.Linear],
    evaluate: Callable[[], float],
    limit: float,
    *,
    options: Sequence[LayerFormat] = OPTIONS,
    evaluations: int | None = None,
    scores: Scores | None = None,
    progress: bool | None = False,
) -> Found:
    """The paper's search: the same format in every layer for each component type.

    Args:
        linears: by name; they are as before when it returns.
        evaluate: score of the model as it stands, higher is better, such as the accuracy on a
            part of the development set.
        limit: largest compression ratio.
        options: to choose from, dense or N:M.
        evaluations: score only so many of the candidates: those of the least loss if the losses
            of the components, each measured alone, added up. None scores all of them, as in the
            paper.
        scores: those that are known.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: no candidate is small enough.
    """
    sizes = component_sizes(linears)
    left = within_ratio(sizes, limit, options=options)
    possible, fitting = len(options) ** len(sizes), len(left)
    if not left:
        refuse_smaller_than_all(limit, options)
    parts = {name: component(name) for name in linears}
    model = OneShot(linears, evaluate, scores)
    if evaluations is not None and evaluations < fitting:
        losses = losses_alone(model, parts, options, progress)
        left.sort(key=lambda one: sum(losses[part][option] for part, option in one.items()))
        left = left[:evaluations]
    scored = [
        Scored(
            one,
            compression_ratio(one, sizes),
            model.score({name: one[part] for name, part in parts.items()}),
        )
        for one in tqdm(left, desc="configurations", disable=hidden(progress))
    ]
    return Found(possible, fitting, best_first(scored))


def refuse_smaller_than_all(limit: float, options: Sequence[LayerFormat]) -> None:
    """Raises ValueError where every candidate is larger than a limit."""
    least = min(bits(option) for option in options) / 32
    if limit < least:
        raise ValueError(
            f"search (--search) {limit:g}: no candidate is that small; the least is {least:g}; "
            "allow more, or offer smaller formats (--formats)"
        )
