"""What is worked out of a hessian once, for all the layers that share it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Factors:
    """A hessian's decompositions, each made when it is first asked for.

    Attributes:
        hessian: float64 [in, in], positive definite.
    """

    def __init__(self, hessian: Tensor) -> None:
        self.hessian = hessian
        # In the solver's dtype, not in float64: they stay for as long as the layers do.
        self._inverse: dict[torch.dtype, Tensor] = {}
        self._spectrum: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    @cached_property
    def lower(self) -> Tensor:
        """float64 [in, in], the lower Cholesky factor.

        Raises:
            ValueError: the hessian is not positive definite.
        """
        return cholesky(self.hessian)

    def inverse(self, dtype: torch.dtype) -> Tensor:
        """[in, in], the upper Cholesky factor of the hessian's inverse."""
        if dtype not in self._inverse:
            factor = cholesky(torch.cholesky_inverse(self.lower)).T
            self._inverse[dtype] = factor.to(dtype).contiguous()
        return self._inverse[dtype]

    def spectrum(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[in] and [in, in], eigenvalues and vectors of the hessian scaled to a diagonal of 1."""
        if dtype not in self._spectrum:
            scale = self.hessian.diagonal().sqrt()
            values, vectors = torch.linalg.eigh(self.hessian / torch.outer(scale, scale))
            self._spectrum[dtype] = values.to(dtype), vectors.to(dtype)
        return self._spectrum[dtype]


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor.

    Raises:
        ValueError: the matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ValueError(
            "hessian: not positive definite; the calibration texts are too few for these inputs: "
            "give more texts or a larger damping"
        )
    return factor
