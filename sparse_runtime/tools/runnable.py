"""Whether what convert() makes will load, as the code that loads it says, before it is written."""

from __future__ import annotations

import torch

from ..checkpoints import Checkpoint, CheckpointError
from ..encoders.families import FAMILIES
from ..encoders.pipeline import runs_base_model
from ..encoders.settings import Settings, read_settings
from ..encoders.weights import Weights
from ..ops import get_backend
from ..store import PackedModel


def read_runnable(checkpoint: Checkpoint) -> Settings | None:
    """What config.json asks for; None for a family that transformers alone runs.

    Raises:
        CheckpointError: it names no family, or asks for what does not run here.
    """
    family, where = checkpoint.config.get("model_type"), checkpoint.directory.name
    if not isinstance(family, str):
        raise CheckpointError(
            f"{where}: config.json: expected a model_type, one of {', '.join(FAMILIES)}, got "
            f"{family!r}, and the names of its tensors do not show which; write it into config.json"
        )
    if family not in FAMILIES:
        return None
    try:
        return read_settings(
            checkpoint.config,
            sentence_encoder=runs_base_model(checkpoint.directory),
            head_size=checkpoint.head_size,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def only_transformers(checkpoint: Checkpoint) -> str:
    """What the user should know of a family that does not run here."""
    return (
        f"SparseModel does not run {checkpoint.config['model_type']!r} models, but "
        f"{', '.join(FAMILIES)}; transformers opens the packed model after import sparse_runtime"
    )


def check_weights(model: PackedModel, settings: Settings) -> None:
    """Compare names and shapes with what the model needs.

    Raises:
        CheckpointError: tensors are missing, have other shapes, or belong to no part of the model.
    """
    backend = get_backend("reference", torch.device("cpu"), torch.float32)
    try:
        Weights(model, settings, backend)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
