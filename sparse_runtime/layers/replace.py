"""Replace the linear layers of a model in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..formats import Compression
from .checks import unusual
from .linear import Linear

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]

# A hook set before the replacement goes on working, and so does the handle that removes it.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
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
    evaluation) and the forward hooks of the old one; in training mode it raises when it is called.

    Args:
        model: any module that contains linear layers.
        structure: as in :meth:`Linear.from_dense`, and so are the other strings.
        values: see there.
        filter_fn: called with each ``nn.Linear`` and its qualified name; true replaces it. None
            replaces those that are plain: no forward of their own, weight shared with no module
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
        TypeError: ``model`` is itself a linear layer, or a chosen layer keeps a pruning mask or
            parametrization, or has a forward of its own.
        ValueError: contradicting strings, or a weight that cannot be packed; names the layer.
        RuntimeError: the backend asked for cannot run a layer.
    """
    if isinstance(model, nn.Linear):
        raise TypeError(
            "model: it is itself an nn.Linear and cannot be replaced in place; use "
            "Linear.from_dense(model)"
        )
    policy = Compression.parse(
        structure=structure, values=values, scales=scales, activations=activations, prune=prune
    )
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wanted = filter_fn or _plain_filter(model)
    chosen = {name: linear for name, linear in linears.items() if wanted(linear, name)}
    packed = {
        id(linear): Linear.compressed(linear, policy, backend=backend, name=name)
        for name, linear in chosen.items()
    }
    for linear in chosen.values():
        _carry_over(linear, packed[id(linear)])
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips repetitions
            if id(child) in packed:
                setattr(parent, name, packed[id(child)])
    report = logger.info if chosen else logger.warning
    report("replaced %d of %d nn.Linear layers", len(chosen), len(linears))
    return model


def _plain_filter(model: nn.Module) -> Filter:
    """The filter used where none is given; logs what it leaves out."""
    owners = {
        storage: f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear)
        for key, tensor in module.named_parameters(recurse=False)
        if (storage := _storage(tensor)) is not None
    }
    readers = _readers(model)

    def wanted(module: nn.Module, name: str) -> bool:
        reason = readers.get(id(module)) or _leave_out(module, owners)
        if reason is not None:
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


def _storage(tensor: Tensor) -> int | None:
    """Address of the memory that tied parameters share; None where there is none to compare."""
    if isinstance(tensor, UninitializedParameter) or type(tensor.detach()) is not Tensor:
        return None
    return tensor.untyped_storage().data_ptr() or None


def _leave_out(module: nn.Module, owners: dict[int, str]) -> str | None:
    if type(module).forward is not nn.Linear.forward:
        return unusual(module)
    weight = module._parameters.get("weight")  # None under a mask: Linear refuses it with a hint
    storage = None if weight is None else _storage(weight)
    return f"its weight is tied to {owners[storage]}" if storage in owners else None


def _carry_over(old: nn.Linear, new: Linear) -> None:
    new.train(old.training)
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
