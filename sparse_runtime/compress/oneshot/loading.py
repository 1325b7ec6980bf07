"""A checkpoint of any layout as a model of transformers, with the head that its config names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checkpoints import Checkpoint, CheckpointError, open_checkpoint, source_name
from ...checkpoints.errors import listed
from ...store.tokenizer_files import TOKENIZER_FILES, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """What is compressed.

    Attributes:
        name: hub id, or name of the directory or of the model's class.
        model: of transformers, in eval mode.
        tokenizer: that goes with it.
        files: directory that it was read from, or None.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    files: Path | None


def open_source(source: str | Path | nn.Module, tokenizer: Any, **hub: Any) -> Source:
    """A directory or hub id in any layout, or a model as it is.

    Args:
        source: one of these.
        tokenizer: of a model; otherwise None takes the one beside the checkpoint.
        hub: as ``open_checkpoint`` takes them.

    Raises:
        ValueError: a model without its tokenizer.
        CheckpointError: as ``open_checkpoint``, :func:`load_model` and :func:`load_tokenizer` do.
    """
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ValueError("tokenizer: a model that is given as such needs its tokenizer too")
        return Source(type(source).__name__, source.eval(), tokenizer, None)
    checkpoint = open_checkpoint(source, **hub)
    return Source(
        source_name(source, checkpoint.directory),
        load_model(checkpoint),
        tokenizer or load_tokenizer(checkpoint.directory),
        checkpoint.directory,
    )


def load_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The checkpoint's network in float32, in transformers' own class and eval mode.

    Raises:
        CheckpointError: the layers are integers already or smaller than the config says, the
            config names no class, or weights are missing, which would be made up at random.
    """
    import transformers

    refuse_changed_layers(checkpoint)
    where = checkpoint.directory.name
    cls = _class_of(checkpoint, transformers)
    config = transformers.AutoConfig.for_model(**checkpoint.config)
    # The model takes the tensors as they are, and what is changed in place must not be the file's.
    state = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    state |= {other: state[kept] for other, kept in checkpoint.aliases.items()}
    try:
        model, found = cls.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:
        raise CheckpointError(f"{where}: its tensors do not fit its config: {error}") from error
    missing = set(found["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        # A bare encoder is used by its hidden states; a random pooler must not be written.
        model.pooler, missing = None, set()
    if missing:
        raise CheckpointError(
            f"{where}: lacks the weights {listed(sorted(missing), 6)} of a {cls.__name__}; give a "
            "complete checkpoint"
        )
    return model.eval()


def refuse_changed_layers(checkpoint: Checkpoint) -> None:
    """Raise where transformers' own classes cannot hold a checkpoint's layers as floats.

    Raises:
        CheckpointError: the layers are integers already or smaller than the config says.
    """
    where = checkpoint.directory.name
    if checkpoint.linears:
        raise CheckpointError(
            f"{where}: its linear layers are integers already ({checkpoint.layout}); prune the "
            "float checkpoint that it was made from"
        )
    if checkpoint.absent or checkpoint.head_size is not None:
        raise CheckpointError(
            f"{where}: lacks heads or halves of layers ({checkpoint.layout}), which transformers' "
            "own classes cannot hold; prune the checkpoint that it was made from"
        )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(directory):
        raise CheckpointError(
            f"{directory.name}: no tokenizer ({', '.join(TOKENIZER_FILES)}), without "
            "which texts cannot be read; save the tokenizer into the model's directory"
        )
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _class_of(checkpoint: Checkpoint, transformers: Any) -> Any:
    names = checkpoint.config.get("architectures") or []
    found = getattr(transformers, str(names[0]), None) if len(names) == 1 else None
    if found is None:
        raise CheckpointError(
            f"{checkpoint.directory.name}: config.json: expected architectures to name one class "
            f"of transformers, such as ['BertModel'], got {names!r}"
        )
    return found
