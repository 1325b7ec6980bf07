"""Masks on weights as PyTorch parametrizations: what is pruned stays zero through training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .targets import encoder_linears


class WeightTransform(nn.Module):
    """What all parametrizations of this room derive from, so that :func:`bake` knows them.

    A subclass maps a weight [out, in] to the weight that the layer multiplies with. One that prunes
    has an attribute ``mask``, bool [out, in], for :func:`masks_of`; one that learns what to prune,
    ``scores``, float, one a weight or one a block.
    """


class Mask(WeightTransform):
    """Keeps a weight where ``mask`` is True and zeroes it elsewhere, gradients too.

    Args:
        mask: bool [out, in].
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight [out, in]."""
        # Not a product: a masked weight is 0, and neither -0 nor, from an infinity, NaN.
        return torch.where(self.mask, weight, 0.0)

    def update(self, mask: Tensor) -> None:
        """Take over another mask, bool [out, in].

        Raises:
            ValueError: it has another shape.
        """
        if mask.shape != self.mask.shape:
            raise ValueError(
                f"mask: expected {list(self.mask.shape)}, got {list(mask.shape)}; masks are by "
                "the name of the layer"
            )
        self.mask.copy_(mask)


def attach_masks(
    linears: Mapping[str, nn.Linear], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Mask]:
    """Put a mask on the weight of every linear layer.

    Args:
        linears: by name, as :func:`~sparse_runtime.compress.targets.encoder_linears` gives them.
        masks: bool [out, in] by the same names; None keeps every weight for now.

    Returns:
        The masks by name; move them with :meth:`Mask.update`.

    Raises:
        ValueError: a layer has a parametrization already, or no mask, or one of another shape.
    """
    attached = {}
    for name, linear in linears.items():
        if transforms(linear):
            raise ValueError(
                f"{name}: its weight has parametrizations already "
                f"({', '.join(type(t).__name__ for t in transforms(linear))}); attach masks first, "
                "once, and fake quantization after them"
            )
        if masks is not None and name not in masks:
            raise ValueError(f"{name}: expected a mask for every layer, got none for this one")
        mask = torch.ones_like(linear.weight, dtype=torch.bool) if masks is None else masks[name]
        if mask.shape != linear.weight.shape:
            raise ValueError(
                f"{name}: expected a mask {list(linear.weight.shape)}, got {list(mask.shape)}"
            )
        attached[name] = Mask(mask.to(linear.weight.device))
        parametrize.register_parametrization(linear, "weight", attached[name])
    return attached


def lock_masks(model: nn.Module, linears: Mapping[str, nn.Linear] | None = None) -> dict[str, Mask]:
    """Mask what is zero now, so that training keeps a pruned model's pattern.

    Args:
        model: whose weights have their zeros baked in.
        linears: the layers by name; None is every linear layer of the encoder.

    Raises:
        ValueError: as :func:`attach_masks`.
    """
    chosen = encoder_linears(model) if linears is None else linears
    return attach_masks(chosen, {name: linear.weight != 0 for name, linear in chosen.items()})


def transforms(linear: nn.Module) -> list[nn.Module]:
    """The parametrizations of a layer's weight, in the order in which they are applied."""
    if not parametrize.is_parametrized(linear, "weight"):
        return []
    return list(_parametrizations(linear))


def _parametrizations(linear: nn.Module) -> parametrize.ParametrizationList:
    of_tensors = cast(nn.ModuleDict, linear.parametrizations)
    return cast(parametrize.ParametrizationList, of_tensors["weight"])


def original_weight(linear: nn.Module) -> Tensor:
    """The weight that is trained, before every parametrization."""
    if not parametrize.is_parametrized(linear, "weight"):
        return cast(Tensor, linear.weight)
    return _parametrizations(linear).original


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model's layers by name, bool [out, in]: of all our parametrizations."""
    found = {}
    for name, module in model.named_modules():
        masks = [_mask(transform) for transform in transforms(module)]
        present = [mask for mask in masks if mask is not None]
        if present:
            found[name] = torch.stack(present).all(0)
    return found


def _mask(transform: nn.Module) -> Tensor | None:
    mask = getattr(transform, "mask", None) if isinstance(transform, WeightTransform) else None
    return mask.bool() if isinstance(mask, Tensor) else None


def baked_weight(linear: nn.Module) -> Tensor:
    """The weight that the layer multiplies with, detached; its zeros are +0."""
    with torch.no_grad():
        return cast(Tensor, linear.weight).detach() + 0.0


def bake(model: nn.Module) -> nn.Module:
    """Write every parametrization of ours into its weight and remove it; in place.

    Plain ``nn.Linear`` modules are left. Pruned weights are +0.

    Returns:
        The model.

    Raises:
        ValueError: a weight has parametrizations of another library besides.
    """
    for name, module in model.named_modules():
        found = transforms(module)
        if not any(isinstance(transform, WeightTransform) for transform in found):
            continue
        foreign = [t for t in found if not isinstance(t, WeightTransform)]
        if foreign:
            raise ValueError(
                f"{name}.weight: has a {type(foreign[0]).__name__} of another library besides "
                "ours; remove that first"
            )
        weight = baked_weight(module)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        with torch.no_grad():
            cast(Tensor, module.weight).copy_(weight)
    return model


def share_of_zeros(linears: Mapping[str, nn.Linear]) -> float:
    """Of all weights of some layers together, as they are multiplied with."""
    size = sum(linear.in_features * linear.out_features for linear in linears.values())
    kept = sum(int(baked_weight(linear).count_nonzero()) for linear in linears.values())
    return 1 - kept / size
