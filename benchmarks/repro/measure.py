"""What is measured of a packed model: its accuracy as our runtime gives it, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparse_runtime as sr
from sparse_runtime.benchmarks.repro.tasks import METRICS
from sparse_runtime.compress.training.data import Part
from sparse_runtime.statistics import spearman
from sparse_runtime.tools.convert_report import ConvertReport

BATCH = 64
MAX_LENGTH = 128


@dataclass(frozen=True)
class Packed:
    """A packed model as it lies on disk.

    Attributes:
        linears_bytes: the encoder's matrices, indices and scales included.
        weights_bytes: model.safetensors, embeddings and head included.
        directory_bytes: every file, the tokenizer's included.
        sparsity: zeros of the encoder's matrices, share of all their weights, cropped ones too.
        structures: how the matrices are packed, and how many of them.
    """

    linears_bytes: int
    weights_bytes: int
    directory_bytes: int
    sparsity: float
    structures: dict[str, int]

    @classmethod
    def of(cls, report: ConvertReport, weights: int) -> Packed:
        """Sizes out of a report.

        Args:
            report: of the conversion.
            weights: of the dense encoder's matrices; what was cropped away counts as zeros.
        """
        structures: dict[str, int] = {}
        kept = 0.0
        for layer in report.layers:
            form = f"{layer.structure} {layer.values}"
            structures[form] = structures.get(form, 0) + 1
            kept += layer.density * layer.shape[0] * layer.shape[1]
        size = report.size
        return cls(
            linears_bytes=size.linears.packed,
            weights_bytes=size.weights_file or 0,
            directory_bytes=size.directory or 0,
            sparsity=1 - kept / weights,
            structures=structures,
        )


def packed_metric(directory: Path, task: str, part: Part) -> float:
    """The task's metric of a packed model, every text through the "cpu" backend.

    Args:
        directory: of the packed model, with its tokenizer.
        task: "stsb_open" gives Spearman's correlation of the cosines, others give accuracy.
        part: rows with labels.
    """
    model = sr.SparseModel.from_pretrained(directory, backend="cpu")
    assert part.labels is not None
    labels = np.asarray(part.labels)
    if METRICS[task] == "spearman":
        assert part.seconds is not None
        first, second = (
            np.asarray(model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True))
            for texts in (part.texts, part.seconds)
        )
        cosines = torch.from_numpy((first * second).sum(1))
        return spearman(cosines, torch.from_numpy(labels))
    return float((packed_classes(model, directory, part.texts) == labels).mean())


def packed_classes(model: Any, directory: Path, texts: tuple[str, ...]) -> np.ndarray:
    """The class of each text, the texts run in order of length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    classes = np.empty(len(texts), dtype=np.int64)
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        inputs = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        with torch.inference_mode():
            classes[rows] = model(**inputs).logits.argmax(1).numpy()
    return classes
