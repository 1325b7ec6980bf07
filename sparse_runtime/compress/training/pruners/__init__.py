"""Methods of pruning while training, a file each."""

from __future__ import annotations

from .admm import AdmmIntegersPruner, AdmmPruner
from .base import NoOptions, Pruner
from .group_lasso import GroupLassoPruner
from .lock import LockPruner
from .magnitude import MagnitudePruner
from .masked_ste import MaskedStePruner
from .movement import MovementPruner, SoftMovementPruner
from .obert import ObertPruner
from .structured import StructuredPruner

PRUNERS: dict[str, type[Pruner]] = {
    "admm": AdmmPruner,
    "admm-integers": AdmmIntegersPruner,
    "group-lasso": GroupLassoPruner,
    "lock": LockPruner,
    "magnitude": MagnitudePruner,
    "masked-ste": MaskedStePruner,
    "movement": MovementPruner,
    "obert": ObertPruner,
    "soft-movement": SoftMovementPruner,
    "structured": StructuredPruner,
}
"""Word in a recipe (``pruning.method``) -> its class."""

__all__ = [
    "PRUNERS",
    "AdmmIntegersPruner",
    "AdmmPruner",
    "GroupLassoPruner",
    "LockPruner",
    "MagnitudePruner",
    "MaskedStePruner",
    "MovementPruner",
    "NoOptions",
    "ObertPruner",
    "Pruner",
    "SoftMovementPruner",
    "StructuredPruner",
]
