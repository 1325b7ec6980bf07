"""The two sides of a model benchmark: a packed model, and transformers with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparse_runtime.benchmarks.encoder_shapes import EncoderShape
from sparse_runtime.checkpoints import kind_of
from sparse_runtime.formats import Compression
from sparse_runtime.spec import Structure
from sparse_runtime.store import PackedLinear, PackedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def random_packed(
    shape: EncoderShape, structure: str, sparsity: float | None, values: str, *, seed: int = 0
) -> PackedModel:
    """An encoder with transformers' random initial weights, its linears pruned and packed.

    Args:
        shape: sizes.
        structure: structure string.
        sparsity: part of the weights or blocks to prune; None for dense and N:M.
        values: value string.
        seed: the same seed gives the same weights.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**shape.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, dtype=torch.float32)
    state = dict(model.state_dict())
    prune = structure if sparsity is None else f"{structure}@{sparsity}"
    policy = Compression.parse(
        structure=structure,
        values=values,
        prune=None if Structure.parse(structure).kind == "dense" else prune,
    )
    linears = {}
    names = [n for n, t in state.items() if kind_of(n, tuple(t.shape)) == "encoder_linear"]
    for name in names:
        module = name.removesuffix(".weight")
        packed, _ = policy.apply(state.pop(name))
        linears[module] = PackedLinear(packed, state.pop(f"{module}.bias"))
    fields: dict[str, Any] = {**config.to_dict(), "architectures": [type(model).__name__]}
    return PackedModel(fields, linears, state, provenance={"source": "random weights"})


def transformers_model(packed: PackedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same network in transformers' own class, eager with SDPA, on the dequantized weights.

    Raises:
        ValueError: the packed model lacks weights of that class.
    """
    import transformers

    names = packed.config.get("architectures") or []
    cls: Any = getattr(transformers, names[0]) if names else transformers.AutoModel
    config = transformers.AutoConfig.for_model(**packed.config)
    with quiet_transformers():
        model, found = cls.from_pretrained(
            None,
            config=config,
            state_dict=_dense_state(packed),
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    # The states of a bare encoder, which are compared, do not pass through its pooler.
    bare = cls is transformers.AutoModel or names[0].endswith("Model")
    missing = [n for n in found["missing_keys"] if not (bare and "pooler." in f".{n}")]
    if missing:
        raise ValueError(f"{type(model).__name__}: the packed model lacks {sorted(missing)}")
    model.eval()
    return model


def token_outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first output: float [unmasked tokens, n], or [batch, n] where there is one a sequence."""
    with torch.inference_mode():
        first = model(**inputs, return_dict=True).to_tuple()[0]
    per_token = first.ndim >= 2 and first.shape[:2] == inputs["input_ids"].shape
    return first[inputs["attention_mask"].bool()].float() if per_token else first.float()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports from transformers inside the block."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _dense_state(packed: PackedModel) -> dict[str, torch.Tensor]:
    state = dict(packed.tensors)
    for module, linear in packed.linears.items():
        state[f"{module}.weight"] = linear.packed.dequantize()
        if linear.bias is not None:
            state[f"{module}.bias"] = linear.bias
    state |= {name: state[stored] for name, stored in packed.aliases.items()}
    return state
