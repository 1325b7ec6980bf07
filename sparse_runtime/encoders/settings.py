"""config.json -> what the forward pass needs to know, or a refusal that names the value."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..spec import FUNCTIONS
from .architecture import Architecture, Size
from .families import FAMILIES, MASKED, QUESTION, SEQUENCE, TOKEN

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
BASE = "base"
TASKS: dict[str, str] = {
    "Model": BASE,
    "ForSequenceClassification": SEQUENCE,
    "ForTokenClassification": TOKEN,
    "ForQuestionAnswering": QUESTION,
    "ForMaskedLM": MASKED,
}
# Classes with a second head, which stays unused: BERT's guess whether two sentences follow.
_CLASSES = {"BertForPreTraining": MASKED}
_CLASS = re.compile(rf"(?P<family>\w+?)(?P<task>{'|'.join(TASKS)})")

NO_NORM = "no_norm"
"""``layer_norm_type`` of nn_pruning's models whose norms take no statistics: every one of them,
those of embeddings and heads included."""

# Fields of training and generation, which some files hold as null; transformers checks their types.
_UNREAD = frozenset(
    {"use_cache", "initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob"}
    | {"dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"}
)

# Values under which the network is an encoder with learned absolute positions.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "layer_norm_type": (None, NO_NORM),
}


@dataclass(frozen=True)
class Settings:
    """Sizes and variants of one model.

    Attributes:
        architecture: the family.
        task: "base" or a key of ``architecture.heads``.
        config: the transformers configuration, defaults filled in.
        sizes: outputs of a head's step by name.
        layers: number of layers.
        heads: attention heads of a layer, at most.
        head_size: features of a head.
        pruned_heads: heads that a layer has lost, by its index; their rows and columns are gone.
        intermediate: feed-forward size of a layer, at most.
        activation: of the feed-forward layer, as the linear kernels call it.
        norm_eps: of every LayerNorm; None where norms take no statistics.
        padding_id: where positions are counted ``after_padding``, else None.
        rows: rows of each embedding table.
        tied: whether the decoder of a masked language model may be the word embedding.
    """

    architecture: Architecture
    task: str
    config: PretrainedConfig
    sizes: Mapping[Size, int]
    layers: int
    heads: int
    head_size: int
    pruned_heads: Mapping[int, frozenset[int]]
    intermediate: int
    activation: str
    norm_eps: float | None
    padding_id: int | None
    rows: Mapping[str, int]
    tied: bool

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence with default position ids."""
        first = 0 if self.padding_id is None else self.padding_id + 1
        return self.rows["position"] - first


def read_settings(
    data: Mapping[str, Any], *, sentence_encoder: bool = False, head_size: int | None = None
) -> Settings:
    """Read the fields of a config.json.

    Args:
        data: the fields, without the packed model's own section.
        sentence_encoder: whether the checkpoint belongs to a sentence-transformers pipeline, which
            runs the base model whatever ``architectures`` says.
        head_size: features of an attention head; None is hidden size over heads.

    Raises:
        ValueError: a value is missing, invalid, or asks for what does not run here.
    """
    architecture = _family(data)
    for key, accepted in _REQUIRED.items():
        if data.get(key) not in accepted:
            raise ValueError(
                f"config.json: {key} {data[key]!r} is not supported, expected {accepted[-1]!r}"
            )
    task = BASE if sentence_encoder else _task(data, architecture)
    config = _fill_defaults(data)
    if getattr(config, "output_attentions", False):
        logger.warning("config.json: output_attentions is ignored, attentions are never returned")
    sizes = _sizes(config, architecture, task)
    heads = _integer(config, "num_attention_heads")
    if head_size is None and sizes["hidden"] % heads:
        raise ValueError(
            f"config.json: hidden_size {sizes['hidden']} is not a multiple of {heads} heads; a "
            "packed model whose hidden size was pruned states head_size"
        )
    return Settings(
        architecture=architecture,
        task=task,
        config=config,
        sizes=sizes,
        layers=_integer(config, "num_hidden_layers", minimum=0),
        heads=heads,
        head_size=head_size or sizes["hidden"] // heads,
        pruned_heads=_pruned_heads(data, heads),
        intermediate=_integer(config, architecture.intermediate_key),
        activation=_activation(getattr(config, architecture.activation_key)),
        norm_eps=_norm_eps(config, architecture),
        padding_id=_padding_id(config, architecture),
        rows=_rows(config, architecture),
        tied=bool(getattr(config, "tie_word_embeddings", True)),
    )


def _sizes(config: PretrainedConfig, architecture: Architecture, task: str) -> dict[Size, int]:
    hidden = _integer(config, "hidden_size")
    labels = 0 if task in (BASE, MASKED) else int(config.num_labels or 0)
    if task == QUESTION and labels != 2:
        raise ValueError(f"config.json: question answering has 2 labels, got {labels}")
    return {
        "hidden": hidden,
        "embedding": hidden
        if architecture.projection is None
        else _integer(config, "embedding_size"),
        "labels": labels,
        "vocab": _integer(config, "vocab_size"),
    }


def _rows(config: PretrainedConfig, architecture: Architecture) -> dict[str, int]:
    keys = {
        "word": "vocab_size",
        "position": "max_position_embeddings",
        "token_type": "type_vocab_size",
    }
    return {kind: _integer(config, keys[kind]) for kind, _ in architecture.tables}


def _norm_eps(config: PretrainedConfig, architecture: Architecture) -> float | None:
    if getattr(config, "layer_norm_type", None) == NO_NORM:
        return None
    return architecture.norm_eps or float(config.layer_norm_eps)


def _pruned_heads(data: Mapping[str, Any], heads: int) -> dict[int, frozenset[int]]:
    pruned = data.get("pruned_heads") or {}
    try:
        found = {int(layer): frozenset(lost) for layer, lost in pruned.items()}
        sound = all(
            type(head) is int and 0 <= head < heads for lost in found.values() for head in lost
        )
    except (AttributeError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"config.json: pruned_heads {pruned!r}: expected lists of heads below {heads} by layer"
        )
    return found


def _padding_id(config: PretrainedConfig, architecture: Architecture) -> int | None:
    if architecture.positions == "columns":
        return None
    if architecture.padding_id is not None:
        return architecture.padding_id
    return _integer(config, "pad_token_id", minimum=0)


def read_device(device: torch.device | str | None) -> torch.device:
    """Where to run; None is the CPU.

    Raises:
        ValueError: there is no such device.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device (--device) {device!r}: expected one of torch, such as 'cpu' or 'cuda:0'"
        ) from None
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device (--device) {str(device)!r}: torch sees {count} CUDA devices here; leave it "
            "out to run on the CPU"
        )
    return found


def read_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The float type of activations: a torch dtype, its name, or None for float32.

    Raises:
        ValueError: another dtype than float32, bfloat16 and float16.
    """
    if dtype is None:
        return torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    return found


def _family(data: Mapping[str, Any]) -> Architecture:
    model_type = data.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {model_type!r} is not supported, expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _task(data: Mapping[str, Any], architecture: Architecture) -> str:
    names = data.get("architectures") or []
    if not names:
        return BASE
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise ValueError(f"config.json: architectures {names!r}: expected a list of one class name")
    if names[0] in _CLASSES and names[0].startswith(architecture.class_names):
        return _CLASSES[names[0]]
    match = _CLASS.fullmatch(names[0])
    if match is None or match["family"] not in architecture.class_names:
        family = architecture.class_names[0]
        raise ValueError(
            f"config.json: architectures {names!r} is not supported with model_type "
            f"{data['model_type']!r}, expected one of "
            f"{', '.join(family + task for task in TASKS)}; name {family + 'Model'!r} in "
            "config.json to run the encoder without its head"
        )
    return TASKS[match["task"]]


def _fill_defaults(data: Mapping[str, Any]) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    declared = CONFIG_MAPPING[data["model_type"]].__annotations__
    fields = {
        key: _as_declared(value, declared.get(key))
        for key, value in data.items()
        if key != "model_type" and (key not in _UNREAD or isinstance(value, (int, float)))
    }
    try:
        return AutoConfig.for_model(data["model_type"], **fields)
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"config.json: {error}") from error


def _as_declared(value: Any, declared: Any) -> Any:
    """A number as transformers' strict fields want it: files have 1 for 1.0 and 48.0 for 48."""
    if declared is float and type(value) is int:
        return float(value)
    if declared is int and type(value) is float and value.is_integer():
        return int(value)
    return value


def _integer(config: PretrainedConfig, key: str, minimum: int = 1) -> int:
    value = getattr(config, key, None)
    if type(value) is not int or value < minimum:
        raise ValueError(f"config.json: {key} {value!r}: expected an integer of at least {minimum}")
    return value


def _activation(name: Any) -> str:
    if name not in FUNCTIONS:
        raise ValueError(
            f"config.json: activation {name!r} is not supported, expected one of "
            f"{', '.join(FUNCTIONS)}"
        )
    return FUNCTIONS[name]
