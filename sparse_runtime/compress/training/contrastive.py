"""Contrastive losses between a student's sentence vectors and banks of every example's vectors.

Source: "From Dense to Sparse: Contrastive Pruning for Better Pre-trained Language Model
Compression" (CAP, arXiv 2112.07198). Three banks keep what pruning tends to forget: the student's
vectors before training ("pretrained"), its vectors at each epoch's start ("snapshots") and those of
a teacher that was fine-tuned on the task ("finetuned").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .schema import require

BankName = Literal["pretrained", "snapshots", "finetuned"]
BANKS: tuple[str, ...] = get_args(BankName)


@dataclass(frozen=True)
class ContrastiveSettings:
    """What the losses weigh; the defaults are the paper's for classification.

    Attributes:
        instance_weight: of the terms whose positives are the same example.
        label_weight: of the terms whose positives have the same label; 0 where there are none.
        temperature: that similarities are divided by.
        extra_candidates: vectors to draw from each bank beside those of the batch; with S
            snapshots these are the S vectors of ``extra_candidates // S`` examples.
        banks: which of the three take part.
    """

    instance_weight: float = 0.1
    label_weight: float = 10.0
    temperature: float = 0.1
    extra_candidates: int = 4096
    banks: tuple[str, ...] = BANKS

    def __post_init__(self) -> None:
        for key in ("instance_weight", "label_weight", "extra_candidates"):
            value = getattr(self, key)
            require(**{key: (value, 0 <= value < math.inf, "a number of 0 or more")})
        fits = 0 < self.temperature < math.inf
        require(temperature=(self.temperature, fits, "a number above 0"))
        known = set(self.banks) <= set(BANKS) and len(set(self.banks)) == len(self.banks)
        expected = f"some of {', '.join(BANKS)}, each once"
        require(banks=(list(self.banks), known and bool(self.banks), expected))


def info_nce(
    similarities: Tensor, positives: Tensor, excluded: Tensor, temperature: float
) -> Tensor:
    """InfoNCE with several positives, as the authors' code weighs it.

    For each query ``-mean over positives p of log(exp(s_p / t) / sum_c exp(s_c / t))``, where c
    runs over the candidates that are not excluded, the positives among them; their sum over the
    queries is divided by the number of all pairs of a query and a positive. (A mean over the
    queries would be as many times more as a query has positives: some ten for classes, which the
    paper's weights do not go with.) Without such a pair the loss is 0.

    Source: calculate_contrastive_loss in ContrastivePruning of github.com/alibaba/AliceMind.

    Args:
        similarities: float [queries, candidates].
        positives: bool [queries, candidates].
        excluded: bool [queries, candidates]; outweighs ``positives``.
        temperature: t.

    Returns:
        a scalar.
    """
    positives = positives & ~excluded
    count = positives.sum(dim=1)
    logits = (similarities / temperature).masked_fill(excluded, -torch.inf)
    log_shares = torch.where(positives, logits.log_softmax(dim=1), 0.0)
    per_query = -log_shares.sum(dim=1) / count.clamp_min(1)
    return per_query.sum() / count.sum().clamp_min(1)


class ContrastiveBanks:
    """The banks of all training examples, and the loss of a batch against them.

    Vectors are kept on the host in half precision: examples x width x 2 bytes for each of the
    pretrained and finetuned banks and for every snapshot.
    """

    def __init__(
        self,
        examples: int,
        settings: ContrastiveSettings,
        *,
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Make empty banks.

        Args:
            examples: in the training set; examples are known by their index from here on.
            settings: of the losses.
            labels: integer class of each example [examples]; None where there are no classes.
            seed: of the draws of extra candidates.

        Raises:
            ValueError: labels are missing that ``settings`` weighs, or do not fit ``examples``.
        """
        if labels is None and settings.label_weight > 0:
            raise ValueError(
                f"label_weight {settings.label_weight}: there are no classes to tell positives "
                "by; set label_weight: 0"
            )
        if labels is not None and (labels.shape != (examples,) or labels.is_floating_point()):
            raise ValueError(
                f"labels: expected {examples} integers, one for each example, got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        self.examples, self.settings = examples, settings
        self.labels = None if labels is None else labels.cpu()
        self._generator = torch.Generator().manual_seed(seed)
        self._vectors: dict[str, list[Tensor]] = {name: [] for name in BANKS}

    def fill(self, name: BankName, vectors: Tensor) -> None:
        """Set the pretrained or finetuned bank, or add a snapshot.

        Args:
            name: of the bank.
            vectors: float [examples, width] in the order of the examples; normalised here.
        """
        if vectors.ndim != 2 or len(vectors) != self.examples:
            raise ValueError(
                f"bank {name!r}: expected [{self.examples}, width], a vector for each example, "
                f"got {list(vectors.shape)}"
            )
        entry = normalize(vectors.detach().float(), dim=-1).to("cpu", torch.float16)
        self._vectors[name] = [*self._vectors[name], entry] if name == "snapshots" else [entry]

    @property
    def snapshots(self) -> int:
        """Number of snapshots taken."""
        return len(self._vectors["snapshots"])

    def loss(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Weighted sum of the terms of every bank; a bank of no snapshots adds nothing yet.

        Args:
            vectors: float [batch, width], L2-normalised, with their graph.
            indices: int64 [batch], which examples these are.

        Raises:
            ValueError: the pretrained or finetuned bank takes part and was never filled.
        """
        total = vectors.new_zeros(())
        for name in self.settings.banks:
            if self._vectors[name]:
                total = total + self._bank_loss(vectors, indices.cpu(), self._vectors[name])
            elif name != "snapshots":
                raise ValueError(
                    f"bank {name!r} is empty: expected it to be filled before the first step; "
                    f"fill it, or leave it out of banks: {list(self.settings.banks)}"
                )
        return total

    def _bank_loss(self, vectors: Tensor, indices: Tensor, bank: list[Tensor]) -> Tensor:
        settings = self.settings
        members = torch.cat([indices, self._extras(indices, len(bank))])
        entries = torch.cat([entry[members] for entry in bank]).to(vectors.device, vectors.dtype)
        candidates = torch.cat([vectors.detach(), entries])
        owners = torch.cat([indices, members.repeat(len(bank))])
        # A query's own vector, detached, tells nothing: its similarity is 1 whatever it is.
        excluded = torch.zeros(len(indices), len(owners), dtype=torch.bool)
        excluded.fill_diagonal_(True)
        similarities = vectors @ candidates.t()
        loss = vectors.new_zeros(())
        if settings.instance_weight > 0:
            same = indices[:, None] == owners[None, :]
            loss = loss + settings.instance_weight * self._term(similarities, same, excluded)
        if settings.label_weight > 0 and self.labels is not None:
            same = self.labels[indices][:, None] == self.labels[owners][None, :]
            loss = loss + settings.label_weight * self._term(similarities, same, excluded)
        return loss

    def _term(self, similarities: Tensor, positives: Tensor, excluded: Tensor) -> Tensor:
        device = similarities.device
        return info_nce(
            similarities, positives.to(device), excluded.to(device), self.settings.temperature
        )

    def _extras(self, indices: Tensor, snapshots: int) -> Tensor:
        """Examples outside the batch, drawn without replacement."""
        others = torch.ones(self.examples, dtype=torch.bool)
        others[indices] = False
        left = others.nonzero().flatten()
        count = min(self.settings.extra_candidates // snapshots, len(left))
        return left[torch.randperm(len(left), generator=self._generator)[:count]]

    def state_dict(self) -> dict[str, Any]:
        """Banks and the state of the draws."""
        return {"vectors": self._vectors, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take :meth:`state_dict`'s form back.

        Raises:
            ValueError: it was made of another number of examples.
        """
        for name, entries in state["vectors"].items():
            if any(len(entry) != self.examples for entry in entries):
                raise ValueError(
                    f"bank {name!r}: expected {self.examples} vectors, got {len(entries[0])}; "
                    "resume with the data that the run was started with"
                )
        self._vectors = {name: list(state["vectors"][name]) for name in BANKS}
        self._generator.set_state(state["generator"])
