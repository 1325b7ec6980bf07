"""Small checkpoints of each family, packed by convert, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import sparse_runtime as sr
from sparse_runtime import store

SIZES = {
    "vocab_size": 199,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
}
NARROW = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": {**SIZES, "pad_token_id": 1},
    "DistilBert": {**NARROW, "vocab_size": 199, "max_position_embeddings": 66},
    "Electra": {**SIZES, "embedding_size": 16},
    "MPNet": {**SIZES, "pad_token_id": 1},
}


def save_tokenizer(directory: Path) -> None:
    """A BERT tokenizer that knows letters and a few words, for 199 ids."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*special, "sparse", "weights", "cat", *letters, *(f"##{one}" for one in letters)]
    vocab += [f"[unused{i}]" for i in range(199 - len(vocab))]
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = transformers.BertTokenizer(vocab=ids, model_max_length=64)
    tokenizer.save_pretrained(directory)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def make(family: str = "Bert", task: str = "Model", name: str = "float", **fields: Any) -> Path:
        """Write a random float checkpoint, its tokenizer beside it."""
        kind = getattr(transformers, f"{family}{task}")
        torch.manual_seed(0)
        model = kind(kind.config_class(**{**FAMILIES[family], **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Untouched norms and biases are ones and zeros, which hide a mix-up of names.
                parameter.add_(torch.randn_like(parameter) * 0.05)
        directory = tmp_path / name
        model.save_pretrained(directory)
        save_tokenizer(directory)
        return directory

    return make


@pytest.fixture
def make_packed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(
        family: str = "Bert",
        task: str = "Model",
        structure: str = "unstructured",
        values: str = "int8",
        **fields: Any,
    ) -> Path:
        """Write a packed directory, as users do; the float checkpoint is its neighbour "float"."""
        directory = tmp_path / "packed"
        source = make_checkpoint(family, task, **fields)
        prune = f"{structure}@0.6" if structure.startswith(("unst", "block")) else None
        sr.convert(
            source, directory, structure=structure, values=values, prune=prune, progress=False
        )
        return directory

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two sequences, the second padded on the right."""
    ids = torch.randint(5, 199, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def with_layers(
    source: Path, packed: Path, auto: Any, make: Callable[[store.PackedLinear], nn.Module]
) -> nn.Module:
    """The float model of ``source`` with the stack's layers made from a packed directory's."""
    model = auto.from_pretrained(source).eval()
    for name, linear in store.load(packed).linears.items():
        known = dict(model.named_modules())
        own = name if name in known else name.removeprefix(f"{model.base_model_prefix}.")
        model.set_submodule(own, make(linear))
    return model


@pytest.fixture
def drop_in() -> Callable[..., nn.Module]:
    """A float model whose layers are exchanged by hand for packed ones."""

    def layer(one: store.PackedLinear) -> nn.Module:
        return sr.Linear(one.packed, one.bias, dtype=torch.float32)

    return lambda source, packed, auto: with_layers(source, packed, auto, layer)


@pytest.fixture
def dequantized() -> Callable[..., nn.Module]:
    """A float model with the values of packed layers, in plain nn.Linear."""

    def dense(one: store.PackedLinear) -> nn.Module:
        weight = one.packed.dequantize()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=one.bias is not None)
        state = {"weight": weight} | ({} if one.bias is None else {"bias": one.bias})
        linear.load_state_dict(state)
        return linear

    return lambda source, packed, auto: with_layers(source, packed, auto, dense)


@pytest.fixture
def run(batch: dict[str, Tensor]) -> Callable[[Any], Tensor]:
    """The first output of a model, at the tokens that are none of padding."""

    def first(model: Any) -> Tensor:
        with torch.no_grad():
            output = model(**batch)[0]
        mask = batch["attention_mask"].bool()
        return output[mask] if output.shape[:2] == mask.shape else output

    return first
