"""What every module that holds a packed weight shares: its tensors, and how they travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..formats import FORMATS, PackedWeight, check_bias
from ..ops import Decision, LinearWeight, PreparedLinear, choose
from ..spec import LinearSpec
from .checks import INPUT_DTYPES
from .state import encode_spec, read_state


class PackedModule(nn.Module):
    """A packed weight and bias as buffers and parameter, and the layout prepared from them.

    The prepared layout is rebuilt wherever the tensors change: loading, moving, copying. State
    dicts, copies and pickles carry the packed tensors alone.
    """

    spec: LinearSpec
    bias: nn.Parameter | None
    prepared: PreparedLinear | None
    backend: str
    name: str
    _marker: Tensor

    def _start(self, packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Take the first weight; tensors are checked."""
        # An empty tensor that follows .to(dtype) as a weight would; the packed tensors must not.
        marker = torch.empty(0, dtype=dtype, device=packed.values.device)
        self.register_buffer("_marker", marker, persistent=False)
        self.register_parameter("bias", None)
        self.register_module("prepared", None)
        self.spec = packed.spec
        self._hold(packed, bias)

    def _hold(self, packed: PackedWeight, bias: Tensor | None) -> None:
        """Put checked tensors in the place of those held so far, and prepare them."""
        for name in self._packed_names():  # another structure has tensors of other names
            self._buffers.pop(name, None)
        self.spec = packed.spec
        for name, tensor in packed.tensors().items():
            self.register_buffer(name, tensor)
        if bias is not None:
            self._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        self._prepare(self._choose)

    def _packed_names(self) -> tuple[str, ...]:
        return FORMATS[self.spec.structure.kind].tensor_names(self.spec)

    @property
    def packed(self) -> PackedWeight:
        """The packed weight; it shares the module's tensors."""
        form = FORMATS[self.spec.structure.kind]
        return form(spec=self.spec, **{name: getattr(self, name) for name in self._packed_names()})

    @property
    def weight(self) -> Tensor:
        """The dequantized weight [out_features, in_features], a new tensor at every access."""
        dtype = self._marker.dtype
        exact = torch.promote_types(dtype, torch.float32)
        return self.packed.dequantize(exact).to(dtype, copy=True)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                "weight of a packed layer is a read-only view; build a new layer with "
                "Linear.from_dense"
            )
        if name == "bias" and isinstance(value, nn.Parameter) and not self._marker.is_meta:
            check_bias(f"{self.name}.bias", value, self.spec.shape[0])
        super().__setattr__(name, value)
        if name == "bias":
            self.prepare()

    def prepare(self) -> None:
        """Bring weight and bias into the layout that runs; needed after they changed in place.

        Raises:
            ValueError: a tensor that was put in since is not what the spec asks for.
            RuntimeError: the backend asked for cannot run the layer where it is.
        """
        self._prepare(self.decide)

    def _prepare(self, decide: Callable[[], Decision]) -> None:
        self.prepared = None  # nothing stale may run when choosing fails
        self._explanation = f"{self.name}: not prepared"
        if self._marker.is_meta:
            return
        decision = decide()
        self.prepared = decision.prepare()
        self._explanation = decision.explain()

    def decide(self) -> Decision:
        """What would run the layer if it were prepared now; ValueError for tensors that do not fit.

        Anyone can assign to a module's tensors, and kernels read as far as the spec says.
        """
        try:
            self.packed.validate()
            if self.bias is not None:
                check_bias("bias", self.bias, self.spec.shape[0])
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        return self._choose()

    def _choose(self) -> Decision:
        """:meth:`decide` with tensors that are checked already."""
        weight, marker = LinearWeight(self.name, self.packed, self.bias), self._marker
        return choose([weight], backend=self.backend, device=marker.device, dtype=marker.dtype)

    def explain(self, *, measure: bool = False) -> str:
        """Which candidate runs the layer, and why not the others; one line each.

        Args:
            measure: also time the layer now, on one thread, and show that beside the prediction.
                A layer that is not prepared or does not run on ``cpu.panels`` has no time.
        """
        if measure and self.prepared is not None:
            return self.decide().explain(measure=True)
        return self._explanation

    def get_extra_state(self) -> Tensor:
        """The spec as uint8 JSON, for ``state_dict``."""
        return encode_spec(self.spec)

    def __getstate__(self) -> dict[str, Any]:
        # The prepared layout belongs to this machine and version: copies and pickles rebuild it.
        state = dict(super().__getstate__())
        state["_modules"] = {**self._modules, "prepared": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.prepare()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before, marker = self.packed.tensors(), self._marker
        dtype = fn(marker).dtype
        if dtype not in INPUT_DTYPES:
            raise TypeError(
                f"{self.name}: expected one of {', '.join(map(str, INPUT_DTYPES))}, got {dtype}"
            )
        bias_dtype = None if self.bias is None else self.bias.dtype
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        now = self._marker
        came_from_meta = marker.is_meta and not now.is_meta  # to_empty: nothing to prepare yet
        rounded = self.bias is not None and self.bias.dtype != bias_dtype
        moved = (now.device, now.dtype) != (marker.device, marker.dtype)
        if not came_from_meta and (moved or rounded):
            self.prepare()
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        arguments = (state_dict, prefix, local_metadata, strict)
        for hook in self._load_state_dict_pre_hooks.values():
            hook(*arguments, missing_keys, unexpected_keys, error_msgs)
        start = len(prefix)
        entries = {key[start:]: t for key, t in state_dict.items() if key.startswith(prefix)}
        state = read_state(entries, self.spec, self.bias)
        missing_keys += [prefix + name for name in state.missing]
        unexpected_keys += [prefix + name for name in state.unexpected if strict]
        error_msgs += [f"{prefix.rstrip('.') or self.name}: {text}" for text in state.errors]
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        if self._marker.is_meta and not assign:
            error_msgs.append(
                f"{prefix.rstrip('.') or self.name}: the layer is on the meta device; pass "
                "assign=True, or call to_empty() first"
            )
        elif state.packed is not None and state.usable:
            self._take(state.packed, state.bias, assign)

    def _take(self, packed: PackedWeight, bias: Tensor | None, assign: bool) -> None:
        """Hold loaded tensors: as they are, or copied to the module's device and bias type."""
        device = packed.values.device if assign else self._marker.device
        if assign:
            bias = None if bias is None else bias.to(device)
        else:
            own = {name: t.to(device, copy=True) for name, t in packed.tensors().items()}
            packed = type(packed)(spec=packed.spec, **own)
            if bias is not None and self.bias is not None:
                bias = bias.to(device, self.bias.dtype, copy=True)
        self._marker = torch.empty(0, dtype=self._marker.dtype, device=device)
        self._hold(packed, bias)
