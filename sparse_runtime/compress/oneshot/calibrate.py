"""A walk over a model's encoder layers, each seeing what the ones before it have become."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..targets import Component, EncoderLayer, layers
from .hessian import InputStatistics
from .hidden_states import Stop, TextBatch, advance, first_states

STAGES: tuple[tuple[Component, ...], ...] = (
    ("query", "key", "value"),
    ("attention_output",),
    ("ffn_in",),
    ("ffn_out",),
)
"""Components by the input they share, in the order of computation."""

_RESIDUAL: dict[Component, Component] = {"attention_output": "query", "ffn_out": "ffn_in"}
"""Whose input is added to a component's output, in layers that normalise after the sum."""


class Collector(Protocol):
    """What is gathered of the inputs of a stage; ``InputStatistics`` is one."""

    def add(
        self, inputs: Tensor, mask: Tensor | None, missing: dict[str, Tensor] | None = None
    ) -> None:
        """Count a batch in: inputs [batch, tokens, in], mask bool [batch, tokens]."""


@dataclass(frozen=True)
class Stage:
    """Linear layers that read the same input.

    Attributes:
        layer: the encoder layer they belong to.
        components: which of its linear layers these are, one or three.
    """

    layer: EncoderLayer
    components: tuple[Component, ...]

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by module name."""
        return {self.layer.names[part]: self.layer.linears[part] for part in self.components}

    @property
    def features(self) -> int:
        """Inputs of the layers."""
        return next(iter(self.linears.values())).in_features


# Their positions start behind the padding token's.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")

Visit = Callable[[Stage, Any], None]


@dataclass
class _Watch:
    """Inputs and outputs of modules during one forward pass."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def calibration_batches(
    tokenizer: Any, texts: Sequence[str], *, max_length: int = 256, batch_size: int = 32
) -> list[dict[str, Tensor]]:
    """Tokenize texts into batches of near equal length, the longest first.

    Raises:
        ValueError: there are no texts, one is not a string, or a number is too low.
    """
    for name, count in (("max_length", max_length), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} {count}: expected 1 or more")
    if isinstance(texts, str):
        raise ValueError(
            f"calibration: expected a list of texts, got one string {texts[:40]!r}; give [text]"
        )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("calibration: expected a list of at least one text")
    least = least_length(tokenizer)
    if max_length < least:
        raise ValueError(
            f"max_length (--max-length) {max_length}: expected {least} or more, for the tokenizer "
            f"adds {least - 1} tokens of its own"
        )
    ordered = sorted(texts, key=len, reverse=True)
    encoded = [tokenizer(text, truncation=True, max_length=max_length) for text in ordered]
    encoded.sort(key=lambda item: -len(item["input_ids"]))
    return [
        dict(tokenizer.pad(encoded[start : start + batch_size], return_tensors="pt"))
        for start in range(0, len(encoded), batch_size)
    ]


def least_length(tokenizer: Any, *, pairs: bool = False) -> int:
    """Tokens that a text must be left: below, tokenizers cut nothing."""
    return int(tokenizer.num_special_tokens_to_add(pair=pairs)) + 1


def longest(model: nn.Module, tokenizer: Any, wanted: int) -> int:
    """Tokens that a text may have: what is wanted, as far as model and tokenizer go."""
    return min(wanted, positions(getattr(model, "config", None)), tokenizer.model_max_length)


def positions(config: Any) -> int:
    """Tokens that a model's position embeddings reach; where it has none, no limit."""
    found: int = getattr(config, "max_position_embeddings", sys.maxsize)
    if getattr(config, "model_type", "") in _OFFSET_POSITIONS:
        found -= config.pad_token_id + 1
    return found


def walk(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    visit: Visit,
    *,
    collect: Callable[[Stage], Collector] = lambda stage: InputStatistics(stage.features),
    follow_dense: bool = False,
    aim: Callable[[EncoderLayer], None] | None = None,
    resume: Callable[[EncoderLayer], bool] | None = None,
    finish: Callable[[EncoderLayer], None] | None = None,
    progress: bool | None = None,
) -> None:
    """Visit every group of linear layers in order with what was collected of its inputs.

    A visit may change the weights and biases of its stage; what follows, in the same layer and in
    later ones, sees the outputs of the changed layer. In memory at a time: the texts' hidden states
    between two layers, twice where the unchanged network is followed, and one stage's collector.

    Args:
        model: a transformers encoder, with or without a head, in eval mode, in float32 on the CPU.
        batches: as :func:`calibration_batches` gives them, with "attention_mask".
        visit: called with each stage and its collector.
        collect: makes the collector of a stage.
        follow_dense: run the unchanged layers beside the changed ones, on their own hidden states,
            and tell collectors what each output misses: the unchanged network's output, residual
            sum included, minus the one that the current weights give.
        aim: with ``follow_dense``, called with a copy of each layer before it is visited; what it
            changes there is what is followed, instead of the unchanged layer.
        resume: called before a layer; True says that it has restored the layer's finished weights,
            and the layer is passed through without a visit.
        finish: called after the last visit of a layer.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: the model is of another dtype or on another device, or no encoder we know.
    """
    encoder = layers(model)
    _check_plain(model)
    disable = None if progress is None else not progress
    with torch.no_grad():
        states = first_states(model, encoder[0].module, batches, follow_dense=follow_dense)
        for layer in tqdm(encoder, desc="calibrating", unit="layer", disable=disable):
            followed = _copy(layer) if follow_dense else None
            if followed is not None and aim is not None:
                aim(followed)
            dense = None if followed is None else followed.module
            if resume is None or not resume(layer):
                for stage in stages(layer):
                    collector = collect(stage)
                    _collect(stage, states, collector, dense)
                    visit(stage, collector)
                if finish is not None:
                    finish(layer)
            advance(states, layer.module, dense)


def _copy(layer: EncoderLayer) -> EncoderLayer:
    """The layer once more, with weights of its own."""
    module = copy.deepcopy(layer.module)
    linears = {
        part: cast(nn.Linear, module.get_submodule(_inside(layer, part))) for part in layer.names
    }
    return replace(layer, module=module, linears=linears)


def _check_plain(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(
                f"{name}: expected float32 on the CPU, got {parameter.dtype} on "
                f"{parameter.device}; calibrate model.float().cpu()"
            )


def stages(layer: EncoderLayer) -> Iterator[Stage]:
    """The groups of a layer's linear modules that read the same input."""
    for group in STAGES:
        yield Stage(layer, group)


def _collect(
    stage: Stage, states: list[TextBatch], collector: Collector, dense: nn.Module | None
) -> None:
    inside = {part: _inside(stage.layer, part) for part in stage.layer.names}
    names = {stage.layer.names[part]: inside[part] for part in stage.components}
    read = inside[stage.components[0]]
    added = _RESIDUAL.get(stage.components[0])
    residual = [inside[added]] if added else []
    for batch in states:
        writes = list(names.values()) if dense else []
        seen = _watch(stage.layer.module, batch, batch.hidden, [read, *residual], writes)
        if dense is None:
            collector.add(seen.inputs[read], batch.mask)
            continue
        assert batch.dense is not None
        wanted = _watch(dense, batch, batch.dense, residual, writes)
        missing = {name: wanted.outputs[i] - seen.outputs[i] for name, i in names.items()}
        for module in residual:
            for short in missing.values():
                short += wanted.inputs[module] - seen.inputs[module]
        collector.add(seen.inputs[read], batch.mask, missing)


def _inside(layer: EncoderLayer, part: Component) -> str:
    """Name of a linear layer within its encoder layer."""
    return layer.names[part].removeprefix(f"{layer.path}.")


def _watch(
    module: nn.Module, batch: TextBatch, hidden: Tensor, reads: list[str], writes: list[str]
) -> _Watch:
    """Run an encoder layer until the inputs of ``reads`` and outputs of ``writes`` are there."""
    seen = _Watch()
    left = len(set(reads)) + len(writes)

    def arrived() -> None:
        if len(seen.inputs) + len(seen.outputs) == left:
            raise Stop

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.inputs[name] = args[0]
            arrived()

        return hook

    def keep_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.outputs[name] = output
            arrived()

        return hook

    handles = [module.get_submodule(n).register_forward_pre_hook(keep_input(n)) for n in set(reads)]
    handles += [module.get_submodule(n).register_forward_hook(keep_output(n)) for n in writes]
    try:
        module(hidden, *batch.args, **batch.kwargs)
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
