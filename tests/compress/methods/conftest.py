"""A tiny encoder's training as pruners see it, and a loop that drives them as the trainer does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparse_runtime.compress.masks import bake, masks_of
from sparse_runtime.compress.targets import encoder_linears
from sparse_runtime.compress.training.pruners import PRUNERS, Pruner
from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.selection import pruning_targets

EXAMPLES, BATCH, TOKENS = 16, 4, 6


@dataclass
class TinyTraining:
    """16 random sentences of 6 tokens in 2 classes; 4 steps an epoch."""

    model: nn.Module
    linears: Mapping[str, nn.Linear]
    total_steps: int
    learning_rate: float = 1e-2
    teacher: nn.Module | None = None
    steps_per_epoch: int = EXAMPLES // BATCH
    examples: int = EXAMPLES
    seed: int = 0
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, 60, (EXAMPLES, TOKENS), generator=generator)
        self.labels = torch.randint(0, 2, (EXAMPLES,), generator=generator)

    def loss(self, rows: Tensor) -> Tensor:
        logits = self.model(input_ids=self.tokens[rows]).logits
        return cross_entropy(logits, self.labels[rows])

    def gradients(
        self, batches: int, batch_size: int, seed: int, *, labels_alone: bool = False
    ) -> Iterator[None]:
        self.asked.append(batches)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(batches):
            self.model.zero_grad()
            self.loss(torch.randint(0, EXAMPLES, (batch_size,), generator=generator)).backward()
            yield
        self.model.zero_grad()

    def encode(self, model: nn.Module, how: str) -> Tensor:
        with torch.no_grad():
            return model.base_model(input_ids=self.tokens).last_hidden_state.mean(1)


@dataclass
class Driver:
    """A pruner in its training; ``run`` goes on from where it stands."""

    pruner: Pruner
    training: TinyTraining
    optimizer: torch.optim.Optimizer
    step: int = 0

    def run(self, until: int, check: Callable[[int], None] | None = None) -> None:
        training, pruner = self.training, self.pruner
        while self.step < until:
            pruner.begin_step(self.step, training.total_steps)
            first = self.step * BATCH % EXAMPLES
            loss = training.loss(torch.arange(first, first + BATCH))
            penalty = pruner.penalty()
            loss = loss if penalty is None else loss + penalty
            self.optimizer.zero_grad()
            loss.backward()
            pruner.before_optimizer(self.step)
            self.optimizer.step()
            pruner.end_step(self.step)
            if check is not None:
                check(self.step)
            self.step += 1

    def finish(self) -> dict[str, Tensor]:
        """Weights of the finished, baked model."""
        self.pruner.finish()
        bake(self.training.model)
        linears = encoder_linears(self.training.model)
        return {name: linear.weight.detach().clone() for name, linear in linears.items()}

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": self.training.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pruner": self.pruner.state_dict(),
                "step": self.step,
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        self.training.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])
        self.step = state["step"]

    def used_weights(self) -> dict[str, Tensor]:
        return {name: linear.weight.detach() for name, linear in self.training.linears.items()}

    def masks(self) -> dict[str, Tensor]:
        return masks_of(self.training.model)


@pytest.fixture
def drive(make_model: Callable[[str], nn.Module]) -> Callable[..., Driver]:
    """Attaches a method as a recipe's ``pruning`` section says it, over ``steps`` steps.

    ``start`` is called on the model before.
    """

    def make(
        pruning: dict[str, Any],
        steps: int = 12,
        start: Callable[[nn.Module], None] = lambda model: None,
        **training: Any,
    ) -> Driver:
        stage = {"name": "s", "task": "classification", "steps": steps, "pruning": pruning}
        section = parse({"name": "r", "stages": [stage]}).stages[0].pruning
        assert section is not None
        model = make_model("bert")
        start(model)
        kind = PRUNERS[section.method]
        linears, patterns = pruning_targets(model, section, kind.needs_pattern)
        running = TinyTraining(model, linears, steps, **training)
        pruner = kind(section, patterns)
        pruner.attach(model, linears, running)  # type: ignore[arg-type]
        own = pruner.parameter_groups(running.learning_rate)
        apart = {id(p) for group in own for p in group["params"]}
        rest = [p for p in model.parameters() if id(p) not in apart]
        optimizer = torch.optim.AdamW(
            [{"params": rest}, *own], lr=running.learning_rate, weight_decay=0.01
        )
        return Driver(pruner, running, optimizer)

    return make


@pytest.fixture
def resumes_exactly(drive: Callable[..., Driver]) -> Callable[..., None]:
    """Stops a training at a step, goes on from its state in a new one, and compares the results."""

    def check(pruning: dict[str, Any], steps: int = 12, at: int = 6) -> None:
        whole, first, second = (drive(pruning, steps) for _ in range(3))
        whole.run(steps)
        first.run(at)
        second.load(first.state())
        second.run(steps)
        assert {n: m.tolist() for n, m in whole.masks().items()} == {
            n: m.tolist() for n, m in second.masks().items()
        }
        expected, found = whole.finish(), second.finish()
        assert all(torch.equal(expected[name], found[name]) for name in expected)

    return check
