"""A model with packed layers -> the tensors and the section of its directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...layers import Linear
from ...layers.state import SPEC_KEY
from ...store.model import SECTION, check_names
from ...store.section import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe(
    model: PreTrainedModel, provenance: dict[str, Any] | None = None
) -> tuple[dict[str, Tensor], Section]:
    """What a packed directory of the model holds: (tensors by stored name, their section).

    Args:
        model: its encoder's linear layers are packed.
        provenance: None keeps what the model's config says.

    Raises:
        ValueError: a name that a packed directory cannot hold.
    """
    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Linear)
    }
    state = model.state_dict()
    tied = {
        name: kept
        for name, kept in model.all_tied_weights_keys.items()
        if name in state and kept in state and _is_same(state[name], state[kept])
    }
    specs = {f"{name}.{SPEC_KEY}" for name in layers}  # they stand in the section
    for name in {*tied, *specs, *(model._keys_to_ignore_on_save or ())}:
        state.pop(name, None)
    packed = {f"{name}.{part}" for name, layer in layers.items() for part in layer.packed.tensors()}
    plain = frozenset(state) - packed
    check_names(set(layers), set(plain), tied)
    if provenance is None:
        provenance = getattr(model.config, SECTION)["provenance"]
    described = {name: layer.spec for name, layer in layers.items()}
    return state, Section(
        described, plain, tied, provenance, attention={}, absent=(), head_size=None
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
