"""One stage while it runs: what its loss is, and what pruners and terms may ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..fake_quant import attach_fake_quant, end_delay, freeze_ranges
from .batches import passes
from .context import Batch, LossTerm
from .encoding import EncodedTexts
from .forward import Outputs, evaluating, run
from .recipe import Stage
from .selection import fitting, quantized_linears
from .task_loss import task_loss

_TEACHER_BATCH = 64


@dataclass
class Models:
    """The two models of a stage, and how they make one vector of a text.

    Attributes:
        student: is trained.
        teacher: in eval mode, or None.
        pooling: "mean", "cls" or "pooler"; used by the task "embedding".
    """

    student: nn.Module
    teacher: nn.Module | None
    pooling: str


@dataclass(frozen=True)
class Needs:
    """What terms look at inside a model.

    Attributes:
        hidden: its hidden states.
        attention: its attention scores.
    """

    hidden: bool
    attention: bool

    @classmethod
    def of(cls, terms: Iterable[LossTerm]) -> Needs:
        """All that one of the terms asks for."""
        listed = list(terms)
        return cls(
            any(term.needs_hidden for term in listed), any(term.needs_attention for term in listed)
        )


class StageTraining:
    """The running stage; :class:`~.context.Training` says what others may use of it."""

    def __init__(
        self,
        stage: Stage,
        models: Models,
        texts: EncodedTexts,
        terms: Sequence[LossTerm],
        seed: int,
    ) -> None:
        self.stage = stage
        self.models = models
        self.model = models.student
        self.teacher = models.teacher
        self.linears: Mapping[str, nn.Linear] = {}
        self.texts = texts
        self.terms = list(terms)
        self.seed = seed
        self.examples = len(texts)
        self.labels = texts.labels
        self.steps_per_epoch, self.total_steps = stage.steps_in(len(texts.epoch_lengths))
        self.quantize_at: int | None = None
        self.freeze_at: int | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.last_parts: dict[str, Tensor] = {}
        self._student = Needs.of(self.terms)
        self._teacher = Needs.of(term for term in self.terms if term.needs_teacher)
        self._kept: dict[str, Tensor] = {}

    @property
    def learning_rate(self) -> float:
        """Learning rate of the current step, of the first parameter group."""
        if self.optimizer is None:
            return self.stage.learning_rate
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.model.parameters()).device

    @property
    def pooling(self) -> str | None:
        """How sentences are pooled in each pass; None where they are not."""
        return self.models.pooling if self.stage.task == "embedding" else None

    def attach(self) -> None:
        """Let the terms prepare, and run the teacher once where its answers can be kept."""
        for term in self.terms:
            term.attach(self)
        needed = any(term.needs_teacher for term in self.terms)
        inside = self._teacher.hidden or self._teacher.attention
        changing = self.stage.task == "masked_lm" or self.stage.augment is not None
        if needed and not inside and not changing:
            self._kept = self._teacher_answers()

    def quantize(self) -> None:
        """Attach fake quantization, after all masks, where the stage asks for it."""
        settings = self.stage.quantization
        if settings is None:
            return
        groups = quantized_linears(self.model, settings)
        names = [name for group in groups.values() for name in group]
        outputs = fitting("quantization.outputs", names, settings.outputs)
        delay = round(settings.start * self.total_steps)
        for values, linears in groups.items():
            attach_fake_quant(
                linears,
                weights=values,
                activations=settings.activations,
                outputs=outputs & linears.keys(),
                # As many as there are at most: ``begin_step`` ends it.
                delay=delay * self.stage.accumulation,
            )
        if settings.activations == "static":
            self.quantize_at = delay
            # One step at least is trained with quantized inputs, and read with a known range.
            self.freeze_at = max(round(settings.freeze * self.total_steps), delay + 1)

    def begin_step(self, step: int) -> None:
        """Static ranges begin to quantize, and stop moving, where the stage says so."""
        if step == self.quantize_at:
            end_delay(self.model)
        if step == self.freeze_at:
            freeze_ranges(self.model)

    def loss(self, inputs: Mapping[str, Tensor], indices: Tensor, labels: Tensor | None) -> Tensor:
        """Loss of one batch, without the pruner's penalty; its parts go to ``last_parts``."""
        with self._precision():
            student = run(
                self.model,
                inputs,
                hidden=self._student.hidden,
                attention=self._student.attention,
                pooling=self.pooling,
            )
            teacher = self._ask_teacher(inputs, indices)
        batch = Batch(inputs, indices, labels, student, teacher)
        parts: dict[str, Tensor] = {}
        weight = self.stage.distillation.task if self.stage.distillation else 1.0
        if self.stage.task != "embedding" and weight:
            if labels is None or student.logits is None:
                raise ValueError(
                    f"stage {self.stage.name!r}: task {self.stage.task} needs labels; the data has "
                    "none: give labelled data, or set distillation.task to 0"
                )
            parts["task"] = weight * task_loss(self.stage.task, student.logits, labels)
        for term in self.terms:
            parts[term.name] = term.loss(batch)
        if not parts:
            raise ValueError(f"stage {self.stage.name!r}: every weight of its loss is 0")
        self.last_parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum()

    def _loss_of_labels(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        with self._precision():
            logits = run(self.model, inputs).logits
        assert logits is not None  # only an embedding has none
        return task_loss(self.stage.task, logits, labels)

    def encode(self, model: nn.Module, how: str) -> Tensor:
        """Pooled vectors [examples, hidden] of every training text; see ``Training``."""
        vectors: Tensor | None = None
        with evaluating(model), self._precision():
            for inputs, indices in self.texts.in_order(_TEACHER_BATCH, self.device):
                pooled = run(model, inputs, hidden=how != "pooler").pooled(how).float()
                if vectors is None:
                    vectors = pooled.new_empty(len(self.texts), pooled.shape[1])
                vectors[indices] = pooled
        if vectors is None:
            raise ValueError("encode: there are no training examples")
        return vectors

    def gradients(
        self, batches: int, batch_size: int, seed: int, *, labels_alone: bool = False
    ) -> Iterator[None]:
        """Gradients of shuffled batches, one stop each; see ``Training``."""
        modes = [(module, module.training) for module in self.model.modules()]
        generator = torch.Generator().manual_seed(seed)
        self.model.eval()
        try:
            for rows in passes(len(self.texts), batches, batch_size, generator):
                batch = self.texts.batch(rows, epoch=0, device=self.device)
                self.model.zero_grad()
                if labels_alone and self.stage.task != "embedding" and batch.labels is not None:
                    self._loss_of_labels(batch.inputs, batch.labels).backward()
                else:
                    self.loss(batch.inputs, batch.indices, batch.labels).backward()
                yield
        finally:
            self.model.zero_grad()
            for module, mode in modes:
                module.training = mode

    def state_dict(self) -> dict[str, object]:
        """States of the terms, in their order."""
        return {"terms": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take back the states of the terms.

        Raises:
            ValueError: there are more or fewer than the recipe has terms.
        """
        saved = state["terms"]
        assert isinstance(saved, list)
        for term, one in zip(self.terms, saved, strict=True):
            term.load_state_dict(one)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.stage.bf16)

    def _ask_teacher(self, inputs: Mapping[str, Tensor], indices: Tensor) -> Outputs | None:
        if self.teacher is None or not any(term.needs_teacher for term in self.terms):
            return None
        if self._kept:
            kept = {name: one[indices] for name, one in self._kept.items()}
            mask = inputs["attention_mask"].bool()
            return Outputs(mask, logits=kept.get("logits"), sentence=kept.get("sentence"))
        with torch.no_grad():
            return run(
                self.teacher,
                inputs,
                hidden=self._teacher.hidden,
                attention=self._teacher.attention,
                pooling=self.pooling,
            )

    def _teacher_answers(self) -> dict[str, Tensor]:
        """What the teacher says of each training text: it says the same in every epoch."""
        assert self.teacher is not None
        kept: dict[str, Tensor] = {}
        with torch.no_grad(), self._precision():
            for inputs, indices in self.texts.in_order(_TEACHER_BATCH, self.device):
                outputs = run(self.teacher, inputs, pooling=self.pooling)
                for name in ("logits", "sentence"):
                    answer = getattr(outputs, name)
                    if answer is None:
                        continue
                    answer = answer.float()
                    if name not in kept:
                        kept[name] = answer.new_empty(len(self.texts), answer.shape[1])
                    kept[name][indices] = answer
        return kept
