"""How much each attention head and feed-forward neuron matters: gradients of masks over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..targets import layers
from .outputs import judged
from .permutation import head_size_of

Objective = Callable[[Any, dict[str, Tensor]], Tensor]
"""(the model's outputs, its inputs) -> one differentiable number an example, [batch]"""


@dataclass(frozen=True)
class MaskGradients:
    """Gradients of each example's objective by masks over units, all ones.

    The mean of their outer products is the empirical Fisher information of the masks, which stands
    for the Hessian of the loss (Kwon et al., "A Fast Post-Training Pruning Framework for
    Transformers", NeurIPS 2022).

    Attributes:
        heads: float32 [examples, heads], a layer each.
        neurons: float32 [examples, neurons], a layer each.
    """

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]


def mask_gradients(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    objective: Objective | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> MaskGradients:
    """Differentiate by a mask over every head and neuron, for each example by itself.

    Args:
        model: a transformers encoder, in eval mode.
        batches: its inputs, with "attention_mask".
        objective: a loss for each example, where there are labels. None takes random projections
            of the outputs (:class:`RandomProjection`), which needs none.
        seed: of the projections.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: the model is in training mode, whose dropout would add to the gradients; there
            are no batches; or the objective gives no number for each example.
    """
    if model.training:
        raise ValueError("model: expected eval mode, got training mode; call model.eval()")
    if not batches:
        raise ValueError("batches: expected at least one")
    measure = RandomProjection(seed) if objective is None else objective
    disable = None if progress is None else not progress
    found: list[list[Tensor]] = []
    with _without_parameter_gradients(model):
        for batch in tqdm(batches, desc="gradients", unit="batch", disable=disable):
            found.append(_gradients(model, batch, measure))
    joined = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return MaskGradients(tuple(joined[0::2]), tuple(joined[1::2]))


class RandomProjection:
    """An example's outputs times random signs: its squared gradient is, on average, the sum of
    the squared gradients of all outputs, so no labels are needed.

    Outputs of padding are left out, and those of the tokens count by their mean.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        output = judged(outputs)
        signs = torch.randint(0, 2, output.shape, generator=self._generator) * 2 - 1
        projected = (output * signs.to(output)).sum(-1)
        if projected.ndim == 1:
            return projected
        mask = batch["attention_mask"].to(output)
        return (projected * mask).sum(1) / mask.sum(1).clamp_min(1).sqrt()


def _gradients(model: nn.Module, batch: dict[str, Tensor], objective: Objective) -> list[Tensor]:
    """[examples, units] for each layer's heads and neurons, in turn."""
    examples = batch["attention_mask"].shape[0]
    head_size = head_size_of(model)
    masks: list[Tensor] = []
    handles = []
    try:
        for layer in layers(model):
            for linear, size in (
                (layer.linears["attention_output"], head_size),
                (layer.linears["ffn_out"], 1),
            ):
                mask = torch.ones(examples, linear.in_features // size, requires_grad=True)
                masks.append(mask)
                handles.append(linear.register_forward_pre_hook(_multiplier(mask, size)))
        with torch.enable_grad():
            values = objective(model(**batch), batch)
        if values.shape != (examples,):
            raise ValueError(
                f"objective: expected one number for each of {examples} examples, got shape "
                f"{list(values.shape)}"
            )
        gradients = torch.autograd.grad(values.sum(), masks)
    finally:
        for handle in handles:
            handle.remove()
    return [gradient.detach() for gradient in gradients]


def _multiplier(mask: Tensor, size: int) -> Callable[..., tuple[Tensor]]:
    def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        spread = mask.repeat_interleave(size, 1).unsqueeze(1)
        return (args[0] * spread.to(args[0]),)

    return multiply


@contextmanager
def _without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
