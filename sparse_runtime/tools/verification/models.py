"""Both models of a verification: the packed one, and the original as transformers runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...checkpoints import Checkpoint
from ...encoders import SparseModel
from ...encoders.pipeline import runs_base_model
from ...encoders.settings import read_settings
from ...store.tokenizer_files import check_tokenizer, has_tokenizer
from ..integers import dense_tensors
from .inputs import Text, Tokens
from .ragged import replace_modules, whole_config, whole_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CLASSES = {
    "base": "AutoModel",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "masked_lm": "AutoModelForMaskedLM",
}
# Whatever differs here makes two models incomparable; a family has only some of these fields.
_FIELDS = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dim",
    "hidden_act",
    "activation",
    "max_position_embeddings",
    "type_vocab_size",
    "pad_token_id",
    "num_labels",
    "problem_type",
)


def check_same_network(packed: SparseModel, checkpoint: Checkpoint) -> PretrainedConfig:
    """The original's configuration, if it describes the network that was packed.

    Raises:
        ValueError: naming every field that differs, or one that transformers does not take.
    """
    original = read_settings(
        checkpoint.config,
        sentence_encoder=runs_base_model(checkpoint.directory),
        head_size=checkpoint.head_size,
    ).config
    differences = [
        f"{name} is {mine!r} in the packed model and {theirs!r} in the source"
        for name in _FIELDS
        if (mine := _field(packed.config, name)) != (theirs := _field(original, name))
    ]
    if differences:
        raise ValueError(
            f"source: {checkpoint.directory.name} is not what the packed model was made from: "
            f"{'; '.join(differences)}; pass the checkpoint that was converted"
        )
    return original


def _field(config: PretrainedConfig, name: str) -> Any:
    value = getattr(config, name, None)
    if name == "problem_type" and value is None:
        # What transformers takes for it, and writes there while it trains.
        return "regression" if config.num_labels == 1 else "single_label_classification"
    return value


def load_original(
    checkpoint: Checkpoint, config: PretrainedConfig, task: str, device: torch.device
) -> PreTrainedModel:
    """The original in float32, in transformers' own class for the task.

    Raises:
        ValueError: the checkpoint lacks weights, which transformers would make up at random, or
            its layers differ from all that transformers runs.
    """
    import transformers

    auto = getattr(transformers, CLASSES[task])
    kept, config = config.hidden_size, whole_config(checkpoint, config)
    arguments: dict[str, Any] = {"config": config, "dtype": torch.float32}
    state = whole_tensors(checkpoint, config, task)
    if checkpoint.is_plain and state is None:
        arguments |= {"pretrained_model_name_or_path": checkpoint.directory}
    else:
        # transformers reads neither other layouts, nor smaller layers, nor names with the prefix of
        # a wrapper, and takes tensors only by the class.
        with torch.device("meta"):
            auto = type(auto.from_config(config))
        state = state or dict(dense_tensors(checkpoint))
        arguments |= {"pretrained_model_name_or_path": None, "state_dict": state}
    with _without_progress_bars():
        model, found = auto.from_pretrained(
            local_files_only=True, output_loading_info=True, **arguments
        )
    # A bare encoder is compared by its hidden states, which no pooler has part in.
    missing = [
        name for name in found["missing_keys"] if task != "base" or "pooler." not in f".{name}"
    ]
    if missing:
        raise ValueError(
            f"source: {checkpoint.directory.name} lacks the weights {', '.join(sorted(missing))} "
            f"of a {type(model).__name__}, so there is no original to compare with"
        )
    replace_modules(model, checkpoint, config, kept)
    return model.to(device).eval()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in a model's directory.

    Raises:
        ValueError: there is none, or it does not load.
    """
    from transformers import AutoTokenizer

    check_tokenizer(directory)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{directory.name}: its tokenizer does not load: {error}") from error


def check_same_tokens(
    model: SparseModel, texts: Sequence[Text], expected: Tokens, max_length: int
) -> None:
    """Raise ValueError where the packed model's own tokenizer reads a text differently.

    A packed model without a tokenizer is never asked for one: the source's is used throughout.
    """
    directory = model.packed.extra_files
    if directory is None or not has_tokenizer(directory):
        return
    own = Tokens(load_tokenizer(directory), texts, max_length)
    for row, text in enumerate(texts):
        if own.ids(row) != expected.ids(row):
            raise ValueError(
                f"source: its tokenizer is not the packed model's: {text!r} becomes "
                f"{expected.ids(row)[:8]} and {own.ids(row)[:8]}; pass the checkpoint that was "
                "converted"
            )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own beside ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
