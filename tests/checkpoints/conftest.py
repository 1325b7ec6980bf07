"""Tiny random models, written in every layout that opens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.ao.quantization import disable_observer
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from sparse_runtime import SparseModel
from sparse_runtime.checkpoints import Checkpoint
from sparse_runtime.testing.exporters import sparseml_qat
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.inspection import inspect

Writer = Callable[[dict[str, Tensor], Path], None]

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


@pytest.fixture(scope="session")
def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    return BertForMaskedLM(config).eval()


@pytest.fixture(scope="session")
def untied(bert: BertForMaskedLM) -> dict[str, Tensor]:
    """The state dict without the tied names: each tensor has memory of its own."""
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    return {name: t.clone() for name, t in bert.state_dict().items() if name not in tied}


def write_safetensors(tensors: dict[str, Tensor], directory: Path) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_torch(tensors: dict[str, Tensor], directory: Path) -> None:
    torch.save(tensors, directory / "pytorch_model.bin")


def write_old_torch(tensors: dict[str, Tensor], directory: Path) -> None:
    # The form before torch 1.6: no zip archive, so it cannot be memory-mapped.
    path = directory / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _write_shards(
    tensors: dict[str, Tensor], directory: Path, stem: str, ending: str, save: Any
) -> None:
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        save({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def write_safetensors_shards(tensors: dict[str, Tensor], directory: Path) -> None:
    _write_shards(tensors, directory, "model", "safetensors", save_file)


def write_torch_shards(tensors: dict[str, Tensor], directory: Path) -> None:
    _write_shards(tensors, directory, "pytorch_model", "bin", torch.save)


WRITERS: dict[str, tuple[Writer, str]] = {
    "safetensors": (write_safetensors, "hugging_face: model.safetensors"),
    "safetensors_shards": (write_safetensors_shards, "hugging_face: model.safetensors in shards"),
    "torch": (write_torch, "hugging_face: pytorch_model.bin"),
    "old_torch": (write_old_torch, "hugging_face: pytorch_model.bin"),
    "torch_shards": (write_torch_shards, "hugging_face: pytorch_model.bin in shards"),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(tensors, layout="safetensors", config=CONFIG) -> directory of a new checkpoint."""
    count = 0

    def write_checkpoint(
        tensors: dict[str, Tensor], layout: str = "safetensors", config: Any = CONFIG
    ) -> Path:
        nonlocal count
        count += 1
        directory = tmp_path / f"checkpoint_{count}"
        directory.mkdir()
        WRITERS[layout][0](tensors, directory)
        if config is not None:
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    return write_checkpoint


@pytest.fixture
def layouts() -> dict[str, str]:
    """Layout that ``write`` takes -> the name that the reader gives it."""
    return {layout: name for layout, (_, name) in WRITERS.items()}


@pytest.fixture(scope="session")
def model_config(bert: BertForMaskedLM) -> dict[str, Any]:
    """What transformers writes as config.json, complete enough to run."""
    return json.loads(bert.config.to_json_string()) | {"architectures": ["BertForMaskedLM"]}


KEPT = 0.25


@pytest.fixture(scope="session")
def pruned(untied: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with exactly a quarter of each encoder matrix kept: its largest magnitudes."""
    tensors = dict(untied)
    for name, tensor in untied.items():
        if tensor.ndim == 2 and ".layer." in name:
            order = tensor.abs().flatten().argsort(descending=True)
            kept = torch.zeros(tensor.numel(), dtype=torch.bool)
            kept[order[: int(KEPT * tensor.numel())]] = True
            tensors[name] = torch.where(kept.view(tensor.shape), tensor, 0)
    return tensors


IDS = torch.arange(24).view(2, 12) * 7 % 50


def run_packed(packed: Path, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return SparseModel.from_pretrained(packed)(input_ids=ids).logits


@pytest.fixture
def runs_like(bert: BertForMaskedLM, tmp_path: Path) -> Callable[..., None]:
    """runs_like(directory, tensors, finalise=None): inspect and convert open it alike, and in
    float32 it gives the outputs of transformers with these tensors."""

    def compare(
        directory: Path,
        tensors: Mapping[str, Tensor],
        finalise: Mapping[str, Any] | None = None,
    ) -> None:
        packed = tmp_path / "packed"
        report = convert(directory, packed, values="fp32", finalise=finalise, progress=False)
        inspected = inspect(directory, finalise=finalise)
        assert report.steps
        assert (inspected.recognised, inspected.steps) == (report.recognised, report.steps)
        model = copy.deepcopy(bert)
        absent = model.load_state_dict(dict(tensors), strict=False)
        assert not absent.unexpected_keys
        assert all("decoder" in name for name in absent.missing_keys)  # tied
        with torch.no_grad():
            expected = model(input_ids=IDS).logits
            plain = bert(input_ids=IDS).logits
        error = (run_packed(packed) - expected).abs().max()
        assert error < 1e-5 * expected.abs().max()
        # The layout does something to these outputs that the comparison would notice.
        assert (plain - expected).abs().max() > 100 * error

    return compare


@pytest.fixture
def holds() -> Callable[..., None]:
    """holds(checkpoint, tensors): it has these tensors and no others, bit by bit."""

    def compare(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        assert {*checkpoint.tensors} == {*tensors}
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.tensors[name], tensor), name

    return compare


# 48 inner features: neither square nor the hidden size, so that no matrix can be transposed unseen.
QAT_CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
    num_labels=3,
    attn_implementation="eager",
)
# As oBERT has it; with every quantizer there is; as later releases of SparseML.
SPARSEML_FORMS: dict[str, dict[str, Any]] = {
    "obert": {},
    "outputs": {"outputs": ("query", "intermediate.dense"), "embedding_outputs": True},
    "signed": {"dtype": torch.qint8},
}


def _texts(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (8, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:], mask[3, 5:] = 0, 0
    return ids, mask


@pytest.fixture(scope="session")
def texts() -> Callable[[int], tuple[Tensor, Tensor]]:
    """texts(seed) -> ids and mask of eight texts of 12 tokens, two of them padded."""
    return _texts


@pytest.fixture(scope="session")
def qat_config() -> dict[str, Any]:
    """config.json of the models before and after quantization-aware training."""
    return QAT_CONFIG.to_dict() | {"architectures": ["BertForSequenceClassification"]}


@pytest.fixture
def write_qat(write: Callable[..., Path], qat_config: dict[str, Any]) -> Callable[..., Path]:
    """write_qat(tensors) -> directory of a checkpoint of such a model, as torch saves it."""
    return lambda tensors: write(dict(tensors), "torch", qat_config)


@pytest.fixture(scope="session")
def plain() -> BertForSequenceClassification:
    """A classifier before quantization-aware training."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(QAT_CONFIG).eval()
    for name, parameter in model.named_parameters():
        # Larger than at the start of a training, or the quantizers would hardly show.
        if "LayerNorm" not in name:
            nn.init.normal_(parameter.data, 0, 0.1)
    return model


@pytest.fixture(scope="session")
@torch.no_grad()
def sparseml(plain: BertForSequenceClassification) -> dict[str, BertForSequenceClassification]:
    """The classifier in each form that SparseML writes, calibrated and frozen."""
    made = {}
    for form, arguments in SPARSEML_FORMS.items():
        made[form] = copy.deepcopy(plain)
        sparseml_qat.quantize(made[form], QAT_CONFIG.num_attention_heads, **arguments)
        for seed in range(3):
            made[form](*_texts(seed))
        made[form].apply(disable_observer)
    return made
