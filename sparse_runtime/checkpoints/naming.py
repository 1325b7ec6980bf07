"""Names of tensors: old spellings brought to today's, and what a tensor is by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .errors import CheckpointError

Kind = Literal["encoder_linear", "embedding", "head", "norm", "other"]

# Wrappers whose state dicts were saved unopened: DataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# LayerNorm as the first BERT checkpoints, written by TensorFlow's converter, call it.
_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
# Counters 0, 1, 2, ... and zeros that transformers rebuilds by itself.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids)")

_STACK = re.compile(r"(.*\.)?(encoder|transformer)\.layers?\.\d+\.(?P<inside>.+)\.weight")
# Tables that are looked up, though they sit inside an encoder layer or beside it.
_TABLE = re.compile(r"(\w*embeddings?|relative_attention_bias)")
_NORM = re.compile(r"\w*(layer_?norm|LayerNorm|layernorm)\w*|norm\d*")
_HEADS = re.compile(
    r"(\w*classifier|cls|lm_head|pooler|qa_outputs|score|vocab_(transform|projector)"
    r"|generator_(predictions|lm_head)|discriminator_predictions)"
)


@dataclass(frozen=True)
class Names:
    """What became of the names in the files.

    Attributes:
        stored: name used from here on -> name in the file.
        renamed: name in the file -> name used from here on, where they differ.
        dropped: buffers that carry no information.
    """

    stored: dict[str, str]
    renamed: dict[str, str]
    dropped: tuple[str, ...]


def is_ignored_buffer(name: str, dtype: str) -> bool:
    """Whether a tensor is an integer buffer that transformers rebuilds by itself."""
    return "int" in dtype and _BUFFERS.fullmatch(name) is not None


def normalise(names: Iterable[str], ignored: Iterable[str] = ()) -> Names:
    """Drop wrappers' prefixes and ignored buffers, and spell LayerNorm's tensors as today.

    Raises:
        CheckpointError: two names become one.
    """
    dropped = frozenset(ignored)
    stored: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for old in names:
        if old in dropped:
            continue
        new = _modern(old)
        if new in stored:
            raise CheckpointError(
                f"{old!r} and {stored[new]!r} are two spellings of {new!r}; expected one of them: "
                "remove the stale one from the file"
            )
        stored[new] = old
        if new != old:
            renamed[old] = new
    return Names(stored, renamed, tuple(sorted(dropped)))


def _modern(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    for old, new in _OLD_ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def kind_of(name: str, shape: tuple[int, ...]) -> Kind:
    """What a tensor is, by its name and shape.

    "encoder_linear" is a 2-D weight inside an encoder stack, such as ``encoder.layer.<i>`` or
    ``transformer.layers.<i>``; only these are packed. Embeddings, heads (with pooler and MLM
    transform), norms and all else stay as they are.
    """
    parts = name.split(".")
    module = parts[-2] if len(parts) > 1 else parts[-1]
    if _NORM.fullmatch(module):
        return "norm"
    if _TABLE.fullmatch(module):
        return "embedding"
    if len(shape) == 2 and _STACK.fullmatch(name):
        return "encoder_linear"
    return "head" if any(_HEADS.fullmatch(part) for part in parts[:-1]) else "other"


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which layer 10 follows layer 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
