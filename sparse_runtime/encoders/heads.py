"""What follows the stack: a head's layers, and the transformers output of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..ops import Backend, Norm, PreparedLinear, TokenBatch
from .architecture import HIDDEN_ACT
from .dense import DenseLinear
from .families import MASKED, QUESTION, SEQUENCE, TOKEN
from .inputs import first_tokens, starts_with_first_tokens
from .settings import BASE, Settings
from .weights import Weights

if TYPE_CHECKING:
    from transformers.utils.generic import ModelOutput


class Head:
    """The layers of one head; without any, it returns nothing.

    Args:
        settings: says which task.
        weights: where the tensors come from.
        backend: restores the padding.
    """

    def __init__(self, settings: Settings, weights: Weights, backend: Backend) -> None:
        self.task = settings.task
        self._restored = backend.restore_padding
        self._steps: list[tuple[PreparedLinear | DenseLinear, str | None, Norm | None]] = []
        for step, names in weights.head_linears():
            activation = settings.activation if step.activation == HIDDEN_ACT else step.activation
            norm = None if step.norm is None else weights.norm(step.norm)
            self._steps.append((weights.linear(names), activation, norm))

    def output(self, states: list[Tensor], batch: TokenBatch, *, every_layer: bool) -> ModelOutput:
        """The transformers output of the task.

        Args:
            states: float [tokens, hidden]: the last layer's, or, with ``every_layer``, all.
            batch: the sequences.
            every_layer: whether to return ``hidden_states``.

        Raises:
            ValueError: the head reads the first token and that is masked.
        """
        hidden = tuple(self._restored(s, batch) for s in states) if every_layer else None
        if self.task == BASE:
            return self._base(states[-1], batch, hidden)
        if self.task == SEQUENCE:
            return self._sequence(states[-1], batch, hidden)
        return self._tokens(states[-1], batch, hidden)

    def _run(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, outputs of the last step]."""
        for linear, activation, norm in self._steps:
            x = linear(x, activation)
            if norm is not None:
                x = norm.apply(x)
        return x

    def _base(
        self, last: Tensor, batch: TokenBatch, hidden: tuple[Tensor, ...] | None
    ) -> ModelOutput:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None
        if self._steps and starts_with_first_tokens(batch):
            pooled = self._run(last[first_tokens(batch)])
        return BaseModelOutputWithPooling(
            last_hidden_state=self._restored(last, batch),
            pooler_output=pooled,
            hidden_states=hidden,
        )

    def _sequence(
        self, last: Tensor, batch: TokenBatch, hidden: tuple[Tensor, ...] | None
    ) -> ModelOutput:
        from transformers.modeling_outputs import SequenceClassifierOutput

        if not starts_with_first_tokens(batch):
            raise ValueError(
                "attention_mask: sequence classification reads the first token of each row, and "
                "one is masked or missing; pad on the right"
            )
        logits = self._run(last[first_tokens(batch)])
        return SequenceClassifierOutput(logits=logits, hidden_states=hidden)

    def _tokens(
        self, last: Tensor, batch: TokenBatch, hidden: tuple[Tensor, ...] | None
    ) -> ModelOutput:
        from transformers import modeling_outputs

        logits = self._restored(self._run(last), batch)
        if self.task == QUESTION:
            start, end = (logits[..., i].contiguous() for i in range(2))
            return modeling_outputs.QuestionAnsweringModelOutput(
                start_logits=start, end_logits=end, hidden_states=hidden
            )
        outputs = {
            TOKEN: modeling_outputs.TokenClassifierOutput,
            MASKED: modeling_outputs.MaskedLMOutput,
        }
        return outputs[self.task](logits=logits, hidden_states=hidden)
