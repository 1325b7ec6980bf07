"""Which heads and neurons stay: the mask search and rearrangement of Kwon et al. (NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def search_masks(
    heads: Sequence[Tensor],
    neurons: Sequence[Tensor],
    *,
    head_cost: float,
    neuron_cost: float,
    budget: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Keep what matters most within a budget; exact for importances that add up.

    For every number of heads, the most important ones are kept and what is left of the budget goes
    to the most important neurons; the split that loses the least importance is taken. Every layer
    keeps its best head and its best neuron.

    Args:
        heads: float [heads] for each layer, importance of each; not negative.
        neurons: float [neurons] for each layer.
        head_cost: of one head, above 0.
        neuron_cost: of one neuron, above 0.
        budget: what all kept units may cost together.

    Returns:
        Bool masks, a layer each, of heads and of neurons; True stays.

    Raises:
        ValueError: the budget does not pay for one head and one neuron in every layer.
    """
    least = len(heads) * head_cost + len(neurons) * neuron_cost
    if budget < least:
        raise ValueError(
            f"budget {budget:g}: one head and one neuron in each of {len(heads)} layers cost "
            f"{least:g}; give more"
        )
    head_order, head_lost = _ranked(heads)
    neuron_order, neuron_lost = _ranked(neurons)
    counts = torch.arange(len(heads), len(head_order) + 1)
    # A hair more, so that a budget of exactly so many units is not one short by rounding.
    rest = ((budget * (1 + 1e-9) - counts.double() * head_cost) / neuron_cost).floor().long()
    rest = rest.clamp_max(len(neuron_order))
    affordable = rest >= len(neurons)
    lost = head_lost[counts] + neuron_lost[rest.clamp_min(0)]
    best = int(torch.where(affordable, lost, torch.inf).argmin())
    return (
        _masks(head_order[: int(counts[best])], heads),
        _masks(neuron_order[: int(rest[best])], neurons),
    )


def rearrange(mask: Tensor, gradients: Tensor) -> Tensor:
    """Swap kept and dropped units of a layer while that lowers the loss with their interactions.

    The loss of dropping a set is ``mean over examples of (sum of its gradients)^2``, the quadratic
    form of the layer's Fisher block. Each step makes the best swap of all; the number of kept units
    stays.

    Args:
        mask: bool [units], True stays.
        gradients: float [examples, units].

    Returns:
        bool [units].
    """
    fisher = gradients.double().T @ gradients.double() / len(gradients)
    mask = mask.clone()
    for _ in range(len(mask)):  # each step lowers the loss; the bound is for rounding alone
        kept, dropped = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
        if not len(kept) or not len(dropped):
            break
        diagonal, pull = fisher.diagonal(), fisher[:, dropped].sum(1)
        entering = diagonal[kept] + 2 * pull[kept]
        leaving = diagonal[dropped] - 2 * pull[dropped]
        change = leaving.unsqueeze(1) + entering - 2 * fisher[dropped][:, kept]
        best = int(change.argmin())
        out, into = divmod(best, len(kept))
        if float(change.flatten()[best]) >= -1e-12 * float(diagonal.sum()):
            break
        mask[dropped[out]], mask[kept[into]] = True, False
    return mask


def _ranked(importance: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Units by importance, each layer's best first, and what is lost with the first k of them."""
    flat = torch.cat([layer.double() for layer in importance])
    first = flat.clone()
    start = 0
    for layer in importance:
        first[start + int(layer.argmax())] = torch.inf
        start += len(layer)
    order = first.argsort(descending=True, stable=True)
    kept = torch.cat([flat.new_zeros(1), flat[order].cumsum(0)])
    return order, kept[-1] - kept


def _masks(chosen: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    sizes = [len(layer) for layer in like]
    mask = torch.zeros(sum(sizes), dtype=torch.bool)
    mask[chosen] = True
    return list(mask.split(sizes))
