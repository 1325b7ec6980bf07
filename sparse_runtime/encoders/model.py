"""The model a user holds: a packed encoder with its head, on one device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from .. import store
from ..ops import CpuBackend, Decision, get_backend
from ..store import PackedModel
from ..store.companions import Companions
from .explain import explain
from .heads import Head
from .hub import resolve
from .inputs import read_inputs
from .pipeline import runs_base_model
from .sentence_model import SentenceModel
from .settings import read_device, read_dtype, read_settings
from .stack import Stack
from .weights import Weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.utils.generic import ModelOutput


WARM_UP_PASSES = 2
"""The first compiles kernels, the second captures them."""


class SparseModel(SentenceModel):
    """A packed encoder, for inference only.

    It has no parameters: what it was packed from stays as it is in ``packed``, and what runs is
    made from it for one device and dtype. Moving the model makes it anew. Gradients do not flow,
    ``train()`` leaves it in evaluation, autocast has no effect. Calls from several threads may
    overlap; on a GPU they may use several streams, and run one after the other.

    Attributes:
        packed: the packed model that :meth:`save_pretrained` writes.
        config: the transformers configuration.
        task: "base", "sequence_classification", "token_classification", "question_answering" or
            "masked_lm".
        unused_tensors: names in the packed model that the task has no use for.
    """

    unused_tensors: tuple[str, ...]

    def __init__(
        self,
        packed: PackedModel,
        *,
        device: torch.device | str | None = None,
        backend: str = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(packed, PackedModel):
            raise TypeError(
                f"packed: expected a PackedModel, got {type(packed).__name__}; use "
                "SparseModel.from_pretrained for a directory or a hub id"
            )
        self.packed = packed
        self._choice = backend
        files = packed.extra_files
        self._companions = None if files is None else Companions.of(Path(files))
        self._settings = read_settings(
            packed.config,
            sentence_encoder=files is not None and runs_base_model(Path(files)),
            head_size=packed.head_size,
        )
        self._build(read_device(device), read_dtype(dtype))
        self.eval()

    @classmethod
    def from_packed(
        cls,
        packed: PackedModel,
        *,
        device: torch.device | str | None = None,
        backend: str = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Make a model from a packed one in memory; arguments as in :meth:`from_pretrained`."""
        return cls(packed, device=device, backend=backend, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: torch.device | str | None = None,
        backend: str = "auto",
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a packed model from a directory or the Hugging Face hub.

        Args:
            path_or_id: a directory that ``convert`` wrote, or a hub id of one.
            device: where to run; None is the CPU.
            backend: "auto", or the only one to use: "cpu", "cuda" or "reference".
            dtype: float type of activations, embeddings and heads: torch.float32 (None),
                torch.bfloat16 or torch.float16, or such a name.
            revision: branch, tag or commit on the hub.
            token: hub token.
            cache_dir: where downloads are kept.
            local_files_only: never use the network.

        Raises:
            FileNotFoundError: there is no such directory.
            ValueError: the directory is not a packed model, is damaged, or asks for what does not
                run here.
        """
        directory = resolve(
            path_or_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(store.load(directory), device=device, backend=backend, dtype=dtype)

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the packed model, with its tokenizer files, as :meth:`from_pretrained` reads it.

        Raises:
            ValueError: the files changed since the model was loaded.
            FileExistsError: ``directory`` exists and may not be replaced.
        """
        if self._companions is not None:
            self._companions.check()
        store.save(self.packed, directory, overwrite=overwrite)

    @property
    def config(self) -> PretrainedConfig:
        """The transformers configuration, with its defaults filled in."""
        return self._settings.config

    @property
    def task(self) -> str:
        """What the head is for."""
        return self._settings.task

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._backend.device

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the activations and outputs."""
        return self._backend.dtype

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What runs each linear layer, and why."""
        return tuple(self._backend.decisions)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that runs."""
        return self._settings.max_length

    def explain(self, *, measure: bool = False) -> str:
        """Which kernel runs each kind of layer, and why no other one does.

        A layer on ``cpu.panels`` shows its predicted time: microseconds of the products alone, on
        one panel of 64 tokens (up to 16 for a layout that few tokens take), one thread.

        Args:
            measure: also time the first layer of each kind now, as the prediction counts it, and
                show both: some milliseconds a kind. Layers on other kernels have no times.
        """
        return explain(self._backend, self._stack.attention_notes(), measure=measure)

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Run batches of these shapes until a later one has nothing left to compile or capture.

        On a GPU, kernels are compiled when they first run, and a number of tokens gets its CUDA
        graph when it comes back (docs/kernels/cuda_encoder.md). Batches with padding count by their
        real tokens.

        Args:
            shapes: (batch, sequence) each.

        Raises:
            ValueError: a shape is not two positive integers, or longer than the model runs.
        """
        listed = list(shapes) if isinstance(shapes, Iterable) else [shapes]
        for shape in listed:
            sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
            if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
                raise ValueError(
                    "shapes: expected [(batch, sequence), ...], two integers of at least 1, "
                    f"got {shape!r}"
                )
            for _ in range(WARM_UP_PASSES):
                self(torch.zeros(sizes, dtype=torch.int64, device=self.device))

    @contextmanager
    def stage_times(self) -> Iterator[list[tuple[str, float]]]:
        """Collect where the time of forward passes goes, inside the block.

        Yields:
            (stage, seconds) of every parallel stage that has run, in order; a linear layer's stages
            begin with its name.

        Raises:
            RuntimeError: the backend does not run in stages.
        """
        if not isinstance(self._backend, CpuBackend):
            raise RuntimeError(
                f"backend {self._backend.name!r} does not time its stages; use backend='cpu'"
            )
        times: list[tuple[str, float]] = []
        self._backend.stage_times = times
        try:
            yield times
        finally:
            self._backend.stage_times = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Run the model as the transformers model of the same class does, without its padding.

        Outputs at masked positions are zeros, where transformers leaves numbers without meaning.

        Args:
            input_ids: int32 or int64 [batch, sequence].
            attention_mask: 1 for tokens and 0 for padding [batch, sequence]; None is all ones.
                Padding may lie anywhere, except where a head reads the first token.
            token_type_ids: int32 or int64 [batch, sequence]; None is 0.
            position_ids: int32 or int64 [batch, sequence] or [1, sequence]; None is the family's.
            output_hidden_states: return the embeddings and each layer's output; None is the
                configuration's.
            output_attentions: None or False; attention weights are never kept.
            return_dict: False returns a tuple; None is the configuration's.

        Returns:
            The transformers output of the task, such as SequenceClassifierOutput. A base model's
            ``pooler_output`` is None where the checkpoint has no pooler or a first token is masked.

        Raises:
            TypeError: an input is not a tensor of the right type.
            ValueError: a wrong shape, a number out of range, attention weights are asked for, or a
                masked first token that a sequence classifier would have to read.
            RuntimeError: torch.jit is tracing, which would record this one batch.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise RuntimeError(
                "SparseModel: torch.jit.trace would record one batch's tokens as constants; call "
                "the model itself, or write a graph with `sparse-runtime export`"
            )
        if output_attentions:
            raise ValueError(
                "output_attentions: expected None or False; attention weights are not kept"
            )
        every_layer = output_hidden_states
        if every_layer is None:
            every_layer = bool(self.config.output_hidden_states)
        with torch.no_grad(), self._without_autocast():
            batch, ids = read_inputs(
                self._settings,
                self._backend,
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
            )
            states = self._stack.run(batch, ids, every_layer=every_layer)
            output = self._head.output(states, batch, every_layer=every_layer)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation, with a warning where ``mode`` is True.

        A module that holds this one as a frozen part may be trained, and switches it with itself.
        """
        if mode:
            warnings.warn(
                "SparseModel stays in evaluation: packed weights are not trained, and there is no "
                "dropout. To train them, train the original checkpoint and convert it again",
                stacklevel=2,
            )
        return super().train(False)

    def extra_repr(self) -> str:
        settings = self._settings
        return (
            f"{settings.config.model_type}, task={settings.task}, layers={settings.layers}, "
            f"hidden={settings.sizes['hidden']}, device={self.device}, dtype={self.dtype}, "
            f"backend={self._backend.name}"
        )

    def _build(self, device: torch.device, dtype: torch.dtype) -> None:
        if device.type == "meta":
            raise ValueError("device meta: expected one that holds data; nothing is packed there")
        backend = get_backend(self._choice, device, dtype)
        weights = Weights(self.packed, self._settings, backend)
        stack = Stack(self._settings, weights, backend)
        head = Head(self._settings, weights, backend)
        self._backend, self._stack, self._head = backend, stack, head
        self.unused_tensors = weights.unused
        self._sentence = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every way to move a module (to, cuda, half, a parent's) ends here. An empty tensor shows
        # where fn leads, and the model is made anew there from its packed weights.
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (probe.device, probe.dtype) != (self.device, self.dtype):
            self._build(probe.device, read_dtype(probe.dtype))
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Prepared layers are rebuilt, so that copies and pickles hold canonical weights only.
        where = (str(self.device), self._choice, self.dtype)
        return _rebuild, (type(self), self.packed, *where, self._companions)


def _rebuild(
    cls: type[SparseModel],
    packed: PackedModel,
    device: str,
    backend: str,
    dtype: torch.dtype,
    companions: Companions | None,
) -> SparseModel:
    model = cls(packed, device=device, backend=backend, dtype=dtype)
    model._companions = companions
    return model
