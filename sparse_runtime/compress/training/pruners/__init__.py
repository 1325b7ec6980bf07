"""Methods of pruning while training, a file each."""

from __future__ import annotations

from .base import NoOptions, Pruner
from .lock import LockPruner
from .magnitude import MagnitudePruner

PRUNERS: dict[str, type[Pruner]] = {
    "lock": LockPruner,
    "magnitude": MagnitudePruner,
}
"""Word in a recipe (``pruning.method``) -> its class."""

__all__ = ["PRUNERS", "LockPruner", "MagnitudePruner", "NoOptions", "Pruner"]
