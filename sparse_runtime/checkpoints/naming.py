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
# What training frameworks put before the names of a model that they hold: Lightning,
# sentence-transformers, Intel's Model-Compression-Research with a teacher beside.
_HOLDERS = ("model.", "0.auto_model.", "student.")
_TEACHERS = re.compile(r"teachers\.\d+\..+")
# How the names of an encoder's layers begin, in the families that run.
_BASE = r"((?P<family>bert|roberta|distilbert|electra|mpnet)\.)?"
_LAYER = re.compile(rf"(?P<before>|.*?\.){_BASE}(encoder|transformer)\.layer\.\d+\..+")
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
        dropped: name in the file -> why it was left out.
        holder: what stood before every name of the encoder, such as "model.", and was taken away.
    """

    stored: dict[str, str]
    renamed: dict[str, str]
    dropped: dict[str, str]
    holder: str = ""


def is_ignored_buffer(name: str, dtype: str) -> bool:
    """Whether a tensor is an integer buffer that transformers rebuilds by itself."""
    return "int" in dtype and _BUFFERS.fullmatch(name) is not None


def normalise(names: Iterable[str], ignored: Iterable[str] = ()) -> Names:
    """Drop wrappers' prefixes, teachers and ignored buffers; spell LayerNorm's tensors as today.

    Raises:
        CheckpointError: two names become one.
    """
    dropped = dict.fromkeys(sorted(ignored), "transformers rebuilds it")
    modern = {old: _modern(old) for old in names if old not in dropped}
    holder = _holder(modern.values())
    stored: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for old, spelled in modern.items():
        if holder and _TEACHERS.fullmatch(spelled):
            dropped[old] = "the teacher's"
            continue
        new = spelled.removeprefix(holder)
        if new in stored:
            raise CheckpointError(
                f"{old!r} and {stored[new]!r} are two spellings of {new!r}; expected one of them: "
                "remove the stale one from the file"
            )
        stored[new] = old
        if new != old:
            renamed[old] = new
    return Names(stored, renamed, dropped, holder)


def family_of(names: Iterable[str]) -> str | None:
    """The ``model_type`` that the names of all layers begin with, such as "bert"."""
    matches = (match for name in names if (match := _LAYER.fullmatch(name)))
    found = {None if match["before"] else match["family"] for match in matches}
    return found.pop() if len(found) == 1 else None


def _holder(names: Iterable[str]) -> str:
    """What stands before every layer, where it is one of ``_HOLDERS``."""
    matches = (_LAYER.fullmatch(name) for name in names if not _TEACHERS.fullmatch(name))
    found = {match["before"] for match in matches if match}
    before = found.pop() if len(found) == 1 else ""
    return before if before in _HOLDERS else ""


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
