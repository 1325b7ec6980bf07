"""Outlier channels evened out between a layer and the one that reads it, where that is exact.

A channel's values may be divided by ``s`` where they are made and its column multiplied by ``s``
where they are read (SmoothQuant, Xiao et al. 2023), if nothing but sums and ReLU lies between:
values pass through attention as weighted sums, and ``relu(x / s) = relu(x) / s``. With powers of
two no bit of the float result changes. GELU and LayerNorm's shared inputs are not of this kind:
they are refused, not approximated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..targets import Component, EncoderLayer, layers
from .calibrate import Stage, walk

STRENGTH = 0.5


class InputMaxima:
    """The largest magnitude of each input of a stage.

    Attributes:
        largest: float [in].
    """

    def __init__(self, features: int) -> None:
        self.largest = torch.zeros(features)

    def add(
        self, inputs: Tensor, mask: Tensor | None, missing: dict[str, Tensor] | None = None
    ) -> None:
        """Count a batch in, padding left out."""
        tokens = inputs.flatten(0, -2) if mask is None else inputs[mask]
        self.largest = torch.maximum(self.largest, tokens.abs().amax(0).to(self.largest))


def input_maxima(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], *, progress: bool | None = None
) -> dict[str, Tensor]:
    """Module name -> float [in], the largest magnitude of each input of every linear layer."""
    found: dict[str, Tensor] = {}

    def visit(stage: Stage, maxima: InputMaxima) -> None:
        found.update(dict.fromkeys(stage.linears, maxima.largest))

    walk(
        model,
        batches,
        visit,
        collect=lambda stage: InputMaxima(stage.features),
        progress=progress,
    )
    return found


def smooth_values(
    layer: EncoderLayer, largest: Tensor | None = None, *, strength: float = STRENGTH
) -> Tensor:
    """Even out the channels between a layer's values and its attention output, in place.

    Args:
        layer: an encoder layer.
        largest: float [in of attention_output], the largest magnitude of each of its inputs; None
            takes the row norms of ``value``.
        strength: SmoothQuant's alpha: 1 evens out the inputs alone, 0 the columns alone.

    Returns:
        float [channels], the powers of two that the values were divided by.
    """
    return _smooth(layer, "value", "attention_output", largest, strength)


def smooth_neurons(
    layer: EncoderLayer, largest: Tensor | None = None, *, strength: float = STRENGTH
) -> Tensor:
    """The same for the neurons of a feed-forward with ReLU; arguments as above.

    Raises:
        ValueError: the activation between the two is not ReLU.
    """
    activation = _activation(layer)
    if activation != "relu":
        raise ValueError(
            f"{layer.path}: smoothing of the feed-forward is exact for ReLU alone, this layer has "
            f"{activation}; leave it out"
        )
    return _smooth(layer, "ffn_in", "ffn_out", largest, strength)


def smooth(
    model: nn.Module,
    largest: Mapping[str, Tensor] | None = None,
    *,
    strength: float = STRENGTH,
) -> dict[str, Tensor]:
    """Smooth whatever a model has that can be smoothed exactly, in place.

    Args:
        model: a transformers encoder.
        largest: module name -> float [in], the largest magnitudes of a linear layer's inputs.
        strength: as in :func:`smooth_values`.

    Returns:
        Name of the reading module -> what its inputs were divided by.
    """
    seen = largest or {}
    done = {}
    for layer in layers(model):
        name = layer.names["attention_output"]
        done[name] = smooth_values(layer, seen.get(name), strength=strength)
        if _activation(layer) == "relu":
            name = layer.names["ffn_out"]
            done[name] = smooth_neurons(layer, seen.get(name), strength=strength)
    return done


def _smooth(
    layer: EncoderLayer,
    maker: Component,
    reader: Component,
    largest: Tensor | None,
    strength: float,
) -> Tensor:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: expected a number from 0 to 1")
    rows, columns = layer.linears[maker], layer.linears[reader]
    with torch.no_grad():
        made = rows.weight.norm(dim=1) if largest is None else largest.to(rows.weight)
        if made.shape != (columns.in_features,):
            raise ValueError(
                f"largest of {layer.names[reader]}: expected {columns.in_features} magnitudes, got "
                f"shape {list(made.shape)}"
            )
        read = columns.weight.abs().amax(0)
        alive = (made > 0) & (read > 0)
        exponent = strength * made.log2() - (1 - strength) * read.log2()
        # Only the ratios matter: leave the middle channel as it is.
        exponent = torch.where(alive, exponent, torch.zeros_like(exponent))
        middle = exponent[alive].median() if bool(alive.any()) else exponent.new_zeros(())
        factors = torch.exp2(torch.where(alive, (exponent - middle).round(), 0.0))
        rows.weight.div_(factors.unsqueeze(1))
        if rows.bias is not None:
            rows.bias.div_(factors)
        columns.weight.mul_(factors)
    return factors


def _activation(layer: EncoderLayer) -> str:
    """What stands between a feed-forward's two matrices: "relu", or the name of something else."""
    for name, module in layer.module.named_modules():
        last = name.rpartition(".")[2]
        if last in ("activation", "intermediate_act_fn"):
            return "relu" if isinstance(module, nn.ReLU) else type(module).__name__
    for module in layer.module.modules():
        function = getattr(module, "intermediate_act_fn", None)
        if function is not None:
            return str(getattr(function, "__name__", function))
    return "an unknown activation"
