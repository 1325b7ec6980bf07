"""Which channels should sit together, so that a pattern keeps more of a matrix.

A pattern looks at groups of consecutive channels. Take one channel out of every group: what a
group is worth with another channel ``x`` in the free place is, for N:M and for blocks alike,

    constant + sum over features of max(threshold[feature], x[feature])

and since ``max(a, x) = (a + x + |a - x|) / 2``, all groups against all free channels are one matrix
of L1 distances. The best way to put the free channels back is then an assignment problem, solved
exactly. Repeated with other places it climbs to a local optimum, and never goes down.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .assignment import best_assignment

ROUNDS = 24
PATIENCE = 2
"""Rounds without gain, in multiples of the group's size, after which the search ends."""


class Objective(ABC):
    """What groups of channels are worth.

    Attributes:
        scores: float [features, channels], not negative.
        size: channels of a group.
    """

    scores: Tensor
    size: int

    @abstractmethod
    def value(self, groups: Tensor) -> Tensor:
        """float [groups]: the worth of groups of channels, int64 [groups, size]."""

    @abstractmethod
    def without_one(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """(constant [groups], threshold [features, groups]) of groups that lack a channel.

        Args:
            rest: int64 [groups, size - 1].
        """

    def gains(self, rest: Tensor, free: Tensor) -> Tensor:
        """float [groups, free]: the worth of each group with each free channel."""
        constant, threshold = self.without_one(rest)
        channels = self.scores[:, free]
        distance = torch.cdist(threshold.t().contiguous(), channels.t().contiguous(), p=1)
        sums = threshold.sum(0).unsqueeze(1) + channels.sum(0)
        return constant.unsqueeze(1) + (sums + distance) / 2


@dataclass(frozen=True)
class NmObjective(Objective):
    """The sum of the ``n`` largest scores of each group of ``size``, feature by feature."""

    scores: Tensor
    size: int
    n: int

    def value(self, groups: Tensor) -> Tensor:
        members = self.scores[:, groups]
        return members.topk(self.n, dim=-1).values.sum(dim=(0, 2))

    def without_one(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        largest = self.scores[:, rest].topk(self.n, dim=-1).values
        return largest[..., :-1].sum(dim=(0, 2)), largest[..., -1]


@dataclass(frozen=True)
class BlockObjective(Objective):
    """What the blocks' energies exceed a threshold by.

    The energy of the ``k`` best blocks is the minimum over thresholds ``t`` of
    ``k * t + sum of max(energy - t, 0)``; with ``t`` held, groups can be judged one by one.

    Attributes:
        scores: energies of a channel within a block's other side.
        size: channels of a block.
        threshold: ``t``, the energy of the last block that is kept.
    """

    scores: Tensor
    size: int
    threshold: float

    def value(self, groups: Tensor) -> Tensor:
        energies = self.scores[:, groups].sum(-1)
        return (energies - self.threshold).clamp_min(0).sum(0)

    def without_one(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        missing = self.threshold - self.scores[:, rest].sum(-1)
        return -missing.sum(0), missing


def search_order(
    objectives: Sequence[Objective],
    *,
    rounds: int = ROUNDS,
    seconds: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Order channels so that the objectives' sum is high; never below that of the order they have.

    Channels behind the last whole group stay where they are.

    Args:
        objectives: of the same channels and the same group size.
        rounds: assignments to solve at most.
        seconds: no round is begun later; None sets no limit. With one, the result depends on the
            machine's speed.
        seed: of the places that are taken out.

    Returns:
        int64 [channels]: the old position of each new one.

    Raises:
        ValueError: no objectives, or they differ in channels or size.
    """
    kinds = {(objective.scores.shape[1], objective.size) for objective in objectives}
    if len(kinds) != 1:
        raise ValueError(
            "objectives: expected one or more with the same (channels, size), got "
            f"{sorted(kinds) or 'none'}"
        )
    channels, size = kinds.pop()
    order = torch.arange(channels)
    count = channels // size
    if size < 2 or count < 2:
        return order
    groups = _climb(objectives, order[: count * size].view(count, size), rounds, seconds, seed)
    # Neighbours are as good as any; ascending order keeps a search that finds nothing the identity.
    groups = groups.sort(dim=1).values
    groups = groups[groups[:, 0].argsort()]
    return torch.cat([groups.flatten(), order[count * size :]])


def _climb(
    objectives: Sequence[Objective], groups: Tensor, rounds: int, seconds: float | None, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    begin = time.perf_counter()
    count, size = groups.shape
    at = torch.arange(count)
    best, idle = _total(objectives, groups), 0
    for _ in range(rounds):
        if idle > PATIENCE * size or (seconds and time.perf_counter() - begin > seconds):
            break
        place = torch.randint(size, (count,), generator=generator)
        free = groups[at, place]
        rest = groups[torch.ones_like(groups, dtype=torch.bool).scatter_(1, place[:, None], False)]
        rest = rest.view(count, size - 1)
        gain = sum(objective.gains(rest, free) for objective in objectives)
        assert isinstance(gain, Tensor)
        chosen = torch.from_numpy(best_assignment(gain.double().numpy()))
        moved = groups.clone()
        moved[at, place] = free[chosen]
        value = _total(objectives, moved)
        idle += 1
        if value > best * (1 + 1e-6):
            idle = 0
        if value > best:
            groups, best = moved, value
    return groups


def _total(objectives: Sequence[Objective], groups: Tensor) -> float:
    return float(sum(objective.value(groups).double().sum() for objective in objectives))
