"""One linear layer: statistics and a pattern in, the pruned and quantized weight out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ...spec import ValueSpec
from ..patterns import Pattern
from .alps import alps_mask
from .exact import exact_obs
from .hessian import InputStatistics
from .problem import Problem, Solution, bias_shift, make_problem
from .quantizer import Grid, fit_grid
from .refine import polish, refit
from .selection import chooser
from .sweep import fixed, sweep

Method = Literal["magnitude", "wanda", "obs", "alps", "exact_obs"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class SolverOptions:
    """How a layer is solved; the defaults are what docs/compress/one_shot.md measured as best.

    Attributes:
        update: change the weights that stay to make up for those that go, by least squares, and
            round each one in view of the others (GPTQ); False only masks and rounds. None is False
            for "magnitude" and "wanda", the plain baselines, and True for the others.
        damping: added to the hessian's diagonal, as a share of its mean.
        step: "obs" only, columns whose mask is chosen together; N:M chooses a group at a time.
        refit_steps: most conjugate-gradient steps of the least squares.
        search_scales: choose integer scales by least squared error; False takes the largest
            weight's. None searches for int4 only, since int8 clips nothing worth it.
        polish_passes: coordinate-descent passes over the integers.
        correct_bias: move the bias so that mean outputs stay.
    """

    update: bool | None = None
    damping: float = 0.01
    step: int = 128
    refit_steps: int = 50
    search_scales: bool | None = None
    polish_passes: int = 2
    correct_bias: bool = True

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping {self.damping}: expected a share above 0, such as 0.01")
        if self.step < 1:
            raise ValueError(f"step {self.step}: expected at least one column")

    def of(self, method: Method) -> SolverOptions:
        """The options with what a method decides filled in."""
        if self.update is not None:
            return self
        return replace(self, update=method not in ("magnitude", "wanda"))


@dataclass(frozen=True)
class SolvedLinear:
    """A layer, solved.

    Attributes:
        weight: float32 [out, in], its zeros the pattern's; with integer values exactly integers
            times scales.
        mask: bool [out, in], False where pruned. A weight that stays may round to zero.
        scales: float32 [``values.scale_count(out, in)``], or None for float values.
        bias_shift: float32 [out], to be added to the bias, or None.
        error: relative output error on the calibration texts, see ``Problem.relative_error``.
    """

    weight: Tensor
    mask: Tensor
    scales: Tensor | None
    bias_shift: Tensor | None
    error: float


def solve(
    name: str,
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern | None,
    *,
    method: Method = "alps",
    values: ValueSpec | None = None,
    options: SolverOptions | None = None,
    has_bias: bool = True,
) -> SolvedLinear:
    """Prune a weight, then quantize what stays, with the least error in the layer's outputs.

    Args:
        name: the layer's, under which ``statistics`` may hold what its outputs miss.
        weight: float [out, in].
        statistics: of the layer's inputs.
        pattern: what to prune, or None to only quantize.
        method: "magnitude" and "wanda" (|w| times the norm of its input; Sun et al. 2024) rank
            weights; "obs" sweeps (SparseGPT); "alps" finds the mask by ADMM, better and slower;
            "exact_obs" is for small matrices.
        values: int8 or int4, or None (or a float type) to leave floats.
        options: see :class:`SolverOptions`.
        has_bias: whether there is a bias that can follow.

    Raises:
        ValueError: an unknown method, or one that cannot do the pattern.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(map(repr, METHODS))}")
    chosen = (options or SolverOptions()).of(method)
    centred = has_bias and chosen.correct_bias and bool(chosen.update)
    problem = make_problem(
        name,
        weight,
        statistics,
        damping=chosen.damping,
        centred=centred,
        corrected=bool(chosen.update),
    )
    if pattern is not None and method != "magnitude":
        # As SparseGPT: what no text feeds needs no weight. Else its 1 on the hessian's diagonal
        # would rank it before inputs that are used.
        problem = replace(problem, target=problem.target.masked_fill(statistics.unused, 0))
    pruned = _prune(problem, pattern, method, statistics, chosen)
    solution = _quantize(problem, pruned, values, chosen)
    # Rounding and masking negative weights leaves -0.0, which is no zero in a bit pattern.
    final = solution.weight.float() + 0.0
    shift = bias_shift(name, weight, final, statistics).float() if centred else None
    return SolvedLinear(final, solution.mask, solution.scales, shift, problem.relative_error(final))


def _prune(
    problem: Problem,
    pattern: Pattern | None,
    method: Method,
    statistics: InputStatistics,
    options: SolverOptions,
) -> Solution:
    target = problem.target
    if pattern is None:
        return Solution(target, torch.ones_like(target, dtype=torch.bool))
    if method in ("magnitude", "wanda"):
        scores = target.abs()
        if method == "wanda":
            mask = _by_row(pattern, scores * statistics.norms.to(scores))
        else:
            mask = pattern.mask(scores)
        found = Solution(target * mask, mask)
    elif method == "obs":
        found = sweep(problem, *chooser(pattern, options.step))
    elif method == "alps":
        mask = alps_mask(problem, pattern)
        found = Solution(target * mask, mask)
    else:
        found = exact_obs(problem, pattern)
    if not options.update:
        return found
    weight = refit(problem, found.weight, found.mask, steps=options.refit_steps)
    return Solution(weight, found.mask)


def _by_row(pattern: Pattern, scores: Tensor) -> Tensor:
    """Wanda compares the weights of one output alone; N:M and blocks have their own places."""
    if pattern.structure.kind != "unstructured":
        return pattern.mask(scores)
    return torch.cat([pattern.mask(row.unsqueeze(0)) for row in scores])


def _quantize(
    problem: Problem, pruned: Solution, values: ValueSpec | None, options: SolverOptions
) -> Solution:
    if values is None or not values.is_integer:
        return pruned
    search = values.dtype == "int4" if options.search_scales is None else options.search_scales
    grid = fit_grid(pruned.weight, values, problem.hessian.diagonal(), search=search)
    if not options.update:
        return Solution(grid.round(pruned.weight), pruned.mask, grid.scales)
    weight = _round_in_view(problem, pruned, grid, options.polish_passes)
    return Solution(weight, pruned.mask, grid.scales)


def _round_in_view(problem: Problem, pruned: Solution, grid: Grid, passes: int) -> Tensor:
    """GPTQ on the mask, then coordinate descent; plain rounding where that is better."""
    # The optimum on the mask, not the target, is what rounding starts from: the sweep would make
    # up a second time for what is pruned.
    around = problem.aimed_at(pruned.weight)
    swept = sweep(around, fixed(pruned.mask), 128, grid).weight
    plain = grid.round(pruned.weight)
    start = swept if problem.error(swept) <= problem.error(plain) else plain
    return polish(problem, start, pruned.mask, grid, passes=passes)
