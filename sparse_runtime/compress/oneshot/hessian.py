"""What a linear layer's inputs say about its weights: second moments, means, column norms."""

from __future__ import annotations

import torch
from torch import Tensor

from .factors import Factors


class InputStatistics:
    """Sums over the tokens that a group of linear layers reads, in float64.

    The Hessian of a layer's squared output error with respect to a row of its weight is
    ``2 X^T X``, the same for every row (OBS, Hassibi and Stork 1993; OBC, Frantar and Alistarh
    2022), so one [in, in] matrix serves every layer that reads the same input.

    Attributes:
        count: tokens seen.
        gram: float64 [in, in], ``X^T X``.
        total: float64 [in], the sum of the inputs.
        cross: layer name -> float64 [in, out], ``X^T D``; D is what the layer's output should be
            minus what it is with the weights it has. Empty where outputs have no other target.
        shift: layer name -> float64 [out], the sum of D.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.total = torch.zeros(features, dtype=torch.float64)
        self.cross: dict[str, Tensor] = {}
        self.shift: dict[str, Tensor] = {}
        self._factors: dict[tuple[float, bool], Factors] = {}
        # By columns: those that narrowed() has left some of.
        self._parts: dict[tuple[int, ...], InputStatistics] = {}

    @property
    def features(self) -> int:
        """Inputs of the layers."""
        return self.gram.shape[0]

    def add(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        missing: dict[str, Tensor] | None = None,
    ) -> None:
        """Count a batch in.

        Args:
            inputs: float [..., in].
            mask: bool [...], False for padding; None counts every token.
            missing: layer name -> float [..., out], by how much each output falls short.

        Raises:
            ValueError: sizes that do not fit, or inputs that are not finite.
        """
        tokens = self._tokens(inputs, mask)
        if tokens.shape[1] != self.features:
            raise ValueError(f"inputs: expected {self.features} features, got {tokens.shape[1]}")
        if not bool(torch.isfinite(tokens).all()):
            raise ValueError(
                "inputs: the calibration texts give values that are not finite; the model is "
                "damaged, or overflows in its dtype: load it in float32"
            )
        self._factors.clear()
        self._parts.clear()
        # Products in the inputs' dtype: float64 ones cost several times as much and a batch is
        # short enough for float32; the sums over batches are what needs the digits.
        self.count += tokens.shape[0]
        self.gram += (tokens.T @ tokens).double()
        self.total += tokens.sum(0, dtype=torch.float64)
        for name, values in (missing or {}).items():
            short = self._tokens(values, mask)
            if name not in self.cross:
                self.cross[name] = self.gram.new_zeros(self.features, short.shape[1])
                self.shift[name] = self.gram.new_zeros(short.shape[1])
            self.cross[name] += (tokens.T @ short).double()
            self.shift[name] += short.sum(0, dtype=torch.float64)

    @staticmethod
    def _tokens(values: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return values.detach().flatten(0, -2).float()
        return values.detach()[mask].float()

    @property
    def mean(self) -> Tensor:
        """float64 [in], the mean input."""
        self._require_tokens()
        return self.total / self.count

    @property
    def norms(self) -> Tensor:
        """float64 [in], Euclidean norm of each input over all tokens (Wanda's ||X_j||)."""
        return self.gram.diagonal().clamp_min(0).sqrt()

    @property
    def unused(self) -> Tensor:
        """bool [in], inputs that were 0 in every token."""
        return self.gram.diagonal() == 0

    def hessian(self, damping: float = 0.0, *, centred: bool = False) -> Tensor:
        """The mean of x x^T, float64 [in, in].

        Args:
            damping: added to the diagonal, as a share of its mean.
            centred: the covariance instead, which is the Hessian where the bias is free to follow.

        Raises:
            ValueError: no tokens were seen, or the damping is negative.
        """
        self._require_tokens()
        if damping < 0:
            raise ValueError(f"damping {damping}: expected 0 or more")
        hessian = self.gram / self.count
        if centred:
            hessian = hessian - torch.outer(self.mean, self.mean)
        diagonal = hessian.diagonal()
        # Inputs that are never anything but 0 would make it singular; 1 keeps their weights.
        dead = diagonal <= 0
        diagonal += damping * diagonal.clamp_min(0).mean()
        diagonal[dead] += 1.0
        return hessian

    def factors(self, damping: float = 0.0, *, centred: bool = False) -> Factors:
        """The hessian with its decompositions, made once for all layers that read these inputs."""
        key = (damping, centred)
        if key not in self._factors:
            self._factors[key] = Factors(self.hessian(damping, centred=centred))
        return self._factors[key]

    def narrowed(
        self, name: str, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> InputStatistics:
        """The statistics of a layer that lacks outputs and inputs; they stay with this one.

        Args:
            name: of the layer in ``cross``.
            rows: int64, outputs that are left; None is all.
            columns: int64, inputs that are left; None is all.
        """
        if rows is None and columns is None:
            return self
        of = self if columns is None else self._part(columns)
        few = InputStatistics(0)
        few.count, few.gram, few.total = of.count, of.gram, of.total
        few._factors = of._factors  # of the same hessian
        if name in self.cross:
            cross = self.cross[name] if columns is None else self.cross[name][columns]
            few.cross[name] = cross if rows is None else cross[:, rows]
            few.shift[name] = self.shift[name] if rows is None else self.shift[name][rows]
        return few

    def _part(self, columns: Tensor) -> InputStatistics:
        """Sums of some inputs, made once."""
        key = tuple(columns.tolist())
        if key not in self._parts:
            part = self._parts[key] = InputStatistics(0)
            part.count = self.count
            part.gram, part.total = self.gram[columns][:, columns], self.total[columns]
        return self._parts[key]

    def _require_tokens(self) -> None:
        if self.count == 0:
            raise ValueError("calibration: no tokens were seen; give texts that are not empty")
