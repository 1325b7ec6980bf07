"""Replace the linear layers of a model in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..formats import Compression
from .checks import own_forward
from .linear import Linear

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]

_CARRIED_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
# Those of gradients, and of tensors that a packed layer has others for.
_DROPPED_HOOKS = (
    *("_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def replace_linears(
    model: Model,
    *,
    structure: str = "auto",
    values: str = "auto",
    filter_fn: Filter | None = None,
    scales: str = "row",
    activations: str = "auto",
    prune: str | None = None,
    backend: str = "auto",
) -> Model:
    """Replace ``nn.Linear`` layers by packed ones, in place; all of them or, on any error, none.

    A layer used in several places stays shared. Each new layer keeps the mode (training or
    evaluation) and the forward hooks of the old one, which their handles go on removing; other
    hooks are dropped with a warning. In training mode it raises when it is called.

    Args:
        model: any module that contains linear layers.
        structure: as in :meth:`Linear.from_dense`, and so are the other strings.
        values: see there.
        filter_fn: called with each ``nn.Linear`` and its qualified name; true replaces it. None
            replaces those that are plain: no forward of their own, memory shared with no module
            of another kind (a tied embedding), weight not read by the parent module instead of
            a call (``nn.MultiheadAttention``, and ``nn.TransformerEncoderLayer`` while PyTorch's
            ``torch.backends.mha`` fast path is on). What is left out is logged.
        scales: see there.
        activations: see there.
        prune: see there.
        backend: see there.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module or itself a linear layer, ``filter_fn`` cannot be called,
            or a chosen layer keeps a pruning mask or parametrization, or has a forward of its own.
        ValueError: contradicting strings, or a weight that cannot be packed; names the layer.
        RuntimeError: the backend asked for cannot run a layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn: expected None or a function of a module and its name, got {filter_fn!r}"
        )
    if isinstance(model, nn.Linear):
        raise TypeError(
            "model: it is itself an nn.Linear and cannot be replaced in place; use "
            "Linear.from_dense(model)"
        )
    policy = Compression.parse(
        structure=structure, values=values, scales=scales, activations=activations, prune=prune
    )
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    left_out: dict[str, str] = {}
    wanted = filter_fn or _plain_filter(model, left_out)
    chosen = {name: linear for name, linear in linears.items() if wanted(linear, name)}
    packed = {
        id(linear): Linear.compressed(linear, policy, backend=backend, name=name)
        for name, linear in chosen.items()
    }
    for name, linear in chosen.items():
        _carry_over(name, linear, packed[id(linear)])
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips repetitions
            if id(child) in packed:
                setattr(parent, name, packed[id(child)])
    if chosen:
        logger.info("replaced %d of %d nn.Linear layers", len(chosen), len(linears))
    else:
        reasons = [f"; {name}: {why}" for name, why in left_out.items()]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        logger.warning(
            "replaced 0 of %d nn.Linear layers%s%s", len(linears), "".join(reasons[:3]), more
        )
    return model


def _plain_filter(model: nn.Module, left_out: dict[str, str]) -> Filter:
    """The filter used where none is given; logs and notes what it leaves out."""
    owners = {
        f"{name}.{key}".lstrip("."): memory
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear)
        for key, tensor in module.named_parameters(recurse=False)
        if (memory := _memory(tensor)) is not None
    }
    readers = _readers(model)

    def wanted(module: nn.Module, name: str) -> bool:
        reason = readers.get(id(module)) or _leave_out(module, owners)
        if reason is not None:
            left_out[name] = reason
            logger.info("%s: left as it is: %s", name, reason)
        return reason is None

    return wanted


def _readers(model: nn.Module) -> dict[int, str]:
    """Layers whose parent may read their weight instead of calling them, and which parent."""
    kinds: tuple[type[nn.Module], ...] = (nn.MultiheadAttention,)
    if torch.backends.mha.get_fastpath_enabled():
        kinds += (nn.TransformerEncoderLayer,)
    return {
        id(child): f"nn.{type(parent).__name__} reads its weight without calling it"
        for parent in model.modules()
        if isinstance(parent, kinds)
        for child in parent.children()
    }


def _memory(tensor: Tensor) -> range | None:
    """Addresses of a parameter's bytes; None where there are none to compare."""
    if isinstance(tensor, UninitializedParameter) or type(tensor.detach()) is not Tensor:
        return None
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return None
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return range(tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size())


def _leave_out(module: nn.Module, owners: dict[str, range]) -> str | None:
    if reason := own_forward(module):
        return reason
    weight = module._parameters.get("weight")  # None under a mask: Linear refuses it with a hint
    memory = None if weight is None else _memory(weight)
    if memory is None:
        return None
    for name, other in owners.items():
        if memory.start < other.stop and other.start < memory.stop:
            return f"its weight is tied to {name}"
    return None


def _carry_over(name: str, old: nn.Linear, new: Linear) -> None:
    new.train(old.training)
    for attribute in _CARRIED_HOOKS:
        hooks = getattr(old, attribute)
        setattr(new, attribute, hooks)  # itself: the handles that remove hooks point to it
        setattr(old, attribute, hooks.copy())
    dropped = [hooks.lstrip("_") for hooks in _DROPPED_HOOKS if getattr(old, hooks)]
    if dropped:
        logger.warning("%s: its %s do not go over to the packed layer", name, ", ".join(dropped))
