"""What an encoder family is, as data: where its tensors lie and which of a few variants it takes.

The forward pass (stack.py) is written once; a family is one :class:`Architecture` in families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Size = Literal["hidden", "embedding", "labels", "vocab"]
Table = Literal["word", "token_type", "position"]

HIDDEN_ACT = "hidden_act"
"""As a step's activation: the one the configuration names."""


@dataclass(frozen=True)
class Step:
    """One linear layer of a head.

    Attributes:
        linear: module name; below the base model's prefix where ``in_base`` is set.
        size: its outputs.
        activation: of kernels/linear, ``HIDDEN_ACT``, or None.
        norm: module name of a LayerNorm that follows, or None.
        in_base: whether the module belongs to the base model (a pooler).
        tied: whether a missing weight is the word embedding's (``tie_word_embeddings``).
        bias: full name of the bias where a checkpoint may keep it outside of ``linear``.
    """

    linear: str
    size: Size
    activation: str | None = None
    norm: str | None = None
    in_base: bool = False
    tied: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class HeadNames:
    """A head: its steps, one after the other, on the first token or on every token."""

    reads: Literal["first", "tokens"]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class LayerNames:
    """Module names within one layer, below ``{stack}.{i}.``

    ``qkv`` names the projections whose outputs, side by side, are queries, keys and values.
    """

    qkv: tuple[str, ...]
    attention_out: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str


@dataclass(frozen=True)
class Architecture:
    """One family of encoders; names are the checkpoints', without the base model's prefix.

    Attributes:
        model_types: values of ``model_type`` in config.json.
        class_names: what the names in ``architectures`` begin with.
        prefix: of the base model's tensors in checkpoints that have a head, such as "bert.".
        tables: embedding tables in the order they are added, with their modules' names.
        embedding_norm: LayerNorm on the sum of the tables.
        stack: the layers, as ``{stack}.{i}``.
        layer: names within a layer.
        heads: by task.
        pooler: the base model's own head; a checkpoint may lack it. None: the family has none.
        positions: default position ids: the token's column, or, counted from ``padding id + 1``,
            the number of tokens up to it that are not padding.
        padding_id: None takes ``pad_token_id``; a number is fixed in the family.
        projection: linear layer between embeddings and stack where their sizes differ, or None.
        relative_bias: table of attention biases by distance, or None.
        norm_eps: None takes ``layer_norm_eps``; a number is fixed in the family.
        intermediate_key: configuration key of the feed-forward size.
        activation_key: configuration key of the feed-forward activation.
        ignored: beginnings of the names that a checkpoint may hold and a task may leave unused.
    """

    model_types: tuple[str, ...]
    class_names: tuple[str, ...]
    prefix: str
    tables: tuple[tuple[Table, str], ...]
    embedding_norm: str
    stack: str
    layer: LayerNames
    heads: Mapping[str, HeadNames]
    pooler: Step | None = None
    positions: Literal["columns", "after_padding"] = "columns"
    padding_id: int | None = None
    projection: str | None = None
    relative_bias: str | None = None
    norm_eps: float | None = None
    intermediate_key: str = "intermediate_size"
    activation_key: str = "hidden_act"
    ignored: tuple[str, ...] = ()

    @property
    def word_table(self) -> str:
        """Module name of the word embeddings."""
        return dict((kind, name) for kind, name in self.tables)["word"]
