"""What a packed layer refuses: dense layers it cannot read, training, inputs that do not fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parameter import UninitializedParameter

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def unusual(module: nn.Module) -> str | None:
    """Why a module is more or less than ``F.linear`` with its own weight and bias, or None."""
    kind = type(module).__name__
    if not isinstance(module, nn.Linear):
        return f"expected an nn.Linear, got {type(module).__module__}.{type(module).__qualname__}"
    if reason := own_forward(module):
        return reason
    extra = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
    if extra:
        return (
            f"{kind} keeps {', '.join(sorted(extra))} beside weight and bias; make a pruning mask "
            "or a parametrization permanent first (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if isinstance(module.weight, UninitializedParameter) or module.weight.is_meta:
        return "the weight has no values yet; load or initialize it first"
    if type(module.weight.detach()) is not Tensor:
        return f"the weight is a {type(module.weight.detach()).__name__}, not a plain tensor"
    return None


def own_forward(module: nn.Module) -> str | None:
    """Why calling a linear layer does more than ``nn.Linear.forward``, or None."""
    kind = type(module).__name__
    if type(module).forward is not nn.Linear.forward:
        return f"{kind} has a forward of its own"
    if "forward" in vars(module):
        return (
            f"{kind} has a forward of its own, set on this layer alone; take off what set it first "
            "(accelerate.hooks.remove_hook_from_module)"
        )
    return None


def refuse_training(name: str, training: bool, *tensors: Tensor | None) -> None:
    """Raise RuntimeError in training mode, or where one of ``tensors`` asks for a gradient."""
    if training:
        raise RuntimeError(
            f"{name}: a packed Linear is for inference and the module is in training mode; call "
            "eval() on the model, or train the dense model and pack it again"
        )
    for tensor in tensors:
        if tensor is None or not tensor.requires_grad or not torch.is_grad_enabled():
            continue
        raise RuntimeError(
            f"{name}: a packed Linear has no gradient, and its input or bias requires one; run it "
            "under torch.inference_mode() or torch.no_grad(), or detach the input"
        )
    if forward_ad._current_level >= 0 and _has_tangent(*tensors):
        raise RuntimeError(
            f"{name}: a packed Linear has no derivative, and its input or bias carries a tangent "
            "(torch.func.jvp, torch.autograd.forward_ad); differentiate the dense model"
        )


def _has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode differentiation, which is under way, follows one of the tensors."""
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def check_input(name: str, input: Tensor, in_features: int, device: torch.device) -> None:
    """Raise RuntimeError, as ``nn.Linear`` does, unless ``input`` is a float [..., in_features]."""
    if input.ndim == 0 or input.shape[-1] != in_features:
        raise RuntimeError(
            f"{name}: expected input [..., {in_features}] (in_features), got {list(input.shape)}"
        )
    if input.dtype not in INPUT_DTYPES:
        raise RuntimeError(
            f"{name}: expected input in float32, bfloat16, float16 or float64, got {input.dtype}"
        )
    if input.device != device:
        raise RuntimeError(f"{name}: expected input on {device}, got {input.device}")


def check_kind_of_tensor(name: str, input: object) -> None:
    """Raise where ``input`` is something else than an array of numbers in memory.

    Asked when a call has failed: before every call it would cost a small layer some 2 %.

    Raises:
        TypeError: no tensor.
        RuntimeError: a tensor of another layout, or one that ``torch.func.vmap`` made.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected input as a torch.Tensor, got {type(input).__name__}")
    if torch._C._functorch.is_batchedtensor(input):
        raise RuntimeError(
            f"{name}: torch.func.vmap cannot see into its kernel; call the layer on the whole "
            "batch, for it takes any number of leading dimensions"
        )
    if input.is_nested:
        raise RuntimeError(
            f"{name}: expected a strided input, got a nested tensor; call the layer on "
            "input.values(), or on input.to_padded_tensor(0.0)"
        )
    if input.layout != torch.strided:
        raise RuntimeError(
            f"{name}: expected a strided input, got {input.layout}; call input.to_dense() first"
        )
