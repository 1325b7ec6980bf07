"""Input statistics and the walk over encoder layers, against plain forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress import Pattern, encoder_linears
from sparse_runtime.compress.oneshot.calibrate import Stage, calibration_batches, longest, walk
from sparse_runtime.compress.oneshot.hessian import InputStatistics
from sparse_runtime.compress.oneshot.layerwise import Format, compress_layers
from sparse_runtime.compress.oneshot.problem import Problem, bias_shift, make_problem

MakeModel = Callable[[str], nn.Module]
FAMILIES = ["bert", "roberta", "electra", "mpnet", "distilbert"]


def batches() -> list[dict[str, Tensor]]:
    """Two batches of ids that no family takes for padding, the second one with padding."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 60, (3, length), generator=generator) for length in (7, 4)]
    masks = [torch.ones(3, 7, dtype=torch.int64), torch.tensor([[1] * 4, [1] * 4, [1, 1, 0, 0]])]
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, masks, strict=True)]


def inputs_of(model: nn.Module, name: str) -> Tensor:
    """What a linear layer reads of the batches, padding left out, [tokens, in]."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    hook.remove()
    return torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches(), strict=True)])


def test_statistics_are_those_of_all_tokens() -> None:
    parts = [torch.randn(5, 3), torch.randn(2, 4, 3)]
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    statistics = InputStatistics(3)
    statistics.add(parts[0])
    statistics.add(parts[1], mask)
    tokens = torch.cat([parts[0], parts[1][mask]]).double()
    assert statistics.count == 8
    assert torch.allclose(statistics.gram, tokens.T @ tokens, atol=1e-5)
    assert torch.allclose(statistics.mean, tokens.mean(0), atol=1e-6)
    assert torch.allclose(statistics.norms, tokens.norm(dim=0), atol=1e-5)
    covariance = statistics.hessian(centred=True)
    assert torch.allclose(covariance, tokens.T.cov(correction=0), atol=1e-5)


def test_damping_and_inputs_that_are_always_zero() -> None:
    statistics = InputStatistics(2)
    statistics.add(torch.tensor([[2.0, 0.0], [4.0, 0.0]]))
    # Mean square 10; the dead input takes no part but must be invertible.
    assert torch.equal(statistics.hessian(0.1), torch.tensor([[10.5, 0], [0, 1.5]]).double())


def test_statistics_refuse_what_would_mislead() -> None:
    statistics = InputStatistics(3)
    with pytest.raises(ValueError, match="no tokens were seen"):
        statistics.hessian()
    with pytest.raises(ValueError, match="expected 3 features, got 2"):
        statistics.add(torch.ones(4, 2))
    with pytest.raises(ValueError, match="not finite"):
        statistics.add(torch.tensor([[1.0, torch.nan, 0.0]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_visited_once_with_its_own_inputs(
    make_model: MakeModel, family: str
) -> None:
    model, seen = make_model(family), {}
    expected = {name: inputs_of(model, name) for name in encoder_linears(model)}

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        seen.update(dict.fromkeys(stage.linears, statistics))

    walk(model, batches(), visit, progress=False)
    assert set(seen) == set(expected)
    for name, tokens in expected.items():
        assert seen[name].count == 3 * 7 + 2 * 4 + 2
        wanted = (tokens.T @ tokens).double()
        assert torch.allclose(seen[name].gram, wanted, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_see_what_those_before_have_become(make_model: MakeModel, family: str) -> None:
    model, seen = make_model(family), {}

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        for name, linear in stage.linears.items():
            seen[name] = statistics
            linear.weight.data *= 0.5

    walk(model, batches(), visit, progress=False)
    # Halving the layers behind one changes nothing for it: the final model is what it saw.
    for name in encoder_linears(model):
        tokens = inputs_of(model, name)
        wanted = (tokens.T @ tokens).double()
        assert torch.allclose(seen[name].gram, wanted, rtol=1e-4, atol=1e-4), name


def test_unchanged_layers_miss_nothing(make_model: MakeModel) -> None:
    def visit(stage: Stage, statistics: InputStatistics) -> None:
        assert set(statistics.cross) == set(stage.linears)
        for name in stage.linears:
            assert statistics.cross[name].abs().max() < 1e-4

    walk(make_model("bert"), batches(), visit, follow_dense=True, progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_following_dense_aims_at_the_sum_with_the_residual(
    make_model: MakeModel, family: str
) -> None:
    """After random damage, the target of ffn_out makes the layer's sum what it was, in the mean
    square of the tokens."""
    model = make_model(family)
    dense = copy.deepcopy(model)
    stages: dict[str, tuple[Stage, InputStatistics]] = {}

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        stages[stage.components[0]] = (stage, statistics)
        if stage.layer.index == 0 and stage.components[0] in ("query", "attention_output"):
            for linear in stage.linears.values():
                linear.weight.data += 0.1 * torch.randn_like(linear.weight)

    def stop(layer: Any) -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        walk(model, batches(), visit, follow_dense=True, finish=stop, progress=False)
    stage, statistics = stages["ffn_out"]
    (name,) = stage.linears
    residual = stage.layer.names["ffn_in"]
    linear = stage.linears[name]
    with torch.no_grad():
        now = linear(inputs_of(model, name)) + inputs_of(model, residual)
        then = dense.get_submodule(name)(inputs_of(dense, name)) + inputs_of(dense, residual)
        missing = (then - now).double()
    wanted = inputs_of(model, name).double().T @ missing
    assert torch.allclose(statistics.cross[name], wanted, rtol=1e-3, atol=1e-3)
    assert torch.allclose(statistics.shift[name], missing.sum(0), rtol=1e-3, atol=1e-3)
    assert missing.abs().max() > 0.01


def test_target_is_the_least_squares_answer_to_what_is_missing() -> None:
    inputs, weight = torch.randn(200, 6, dtype=torch.float64), torch.randn(4, 6)
    wanted = inputs @ torch.randn(6, 4, dtype=torch.float64) + 3.0
    missing = wanted - inputs @ weight.double().T
    statistics = InputStatistics(6)
    statistics.add(inputs, missing={"layer": missing})
    problem = make_problem("layer", weight, statistics, damping=1e-9, centred=True)
    shift = bias_shift("layer", weight, problem.target, statistics)
    ones = torch.cat([inputs, torch.ones(200, 1)], 1)
    solved = torch.linalg.lstsq(ones, wanted).solution
    assert torch.allclose(problem.target.double(), solved[:6].T, atol=1e-4)
    assert torch.allclose(shift, solved[6], atol=1e-4)


def test_error_of_a_problem_is_that_of_the_outputs() -> None:
    inputs, target = torch.randn(50, 6, dtype=torch.float64), torch.randn(4, 6).double()
    problem = Problem(target, inputs.T @ inputs / 50)
    other = torch.randn(4, 6).double()
    lost = (inputs @ (other - target).T).square().sum() / 50
    assert problem.error(other) == pytest.approx(float(lost), rel=1e-5)
    assert problem.relative_error(torch.zeros(4, 6)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"a hessian \[in, in\]"):
        Problem(target, torch.eye(5).double())


def test_restored_layers_are_passed_through(make_model: MakeModel) -> None:
    model, visited = make_model("bert"), []

    def resume(layer: Any) -> bool:
        if layer.index == 0:
            layer.linears["ffn_out"].weight.data.zero_()
            return True
        return False

    def visit(stage: Stage, statistics: InputStatistics) -> None:
        visited.append((stage, statistics))

    walk(model, batches(), visit, resume=resume, progress=False)
    assert {stage.layer.index for stage, _ in visited} == {1}
    stage, statistics = visited[0]
    tokens = inputs_of(model, stage.layer.names["query"])
    assert torch.allclose(statistics.gram, (tokens.T @ tokens).double(), rtol=1e-4, atol=1e-4)


def test_batches_refuse_no_texts() -> None:
    for texts in ([], [1]):
        with pytest.raises(ValueError, match="expected a list of at least one text"):
            calibration_batches(None, texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a list of texts, got one string 'one text'; give"):
        calibration_batches(None, "one text")


# BERT holds 512 positions; RoBERTa's and MPNet's first two are the padding's.
@pytest.mark.parametrize(("family", "most"), [("bert", 512), ("roberta", 510), ("mpnet", 510)])
def test_no_text_is_longer_than_the_model_reads(
    make_model: MakeModel, family: str, most: int
) -> None:
    model = make_model(family)
    assert longest(model, SimpleNamespace(model_max_length=10**30), 1000) == most
    assert longest(model, SimpleNamespace(model_max_length=128), 1000) == 128
    assert longest(model, SimpleNamespace(model_max_length=128), 64) == 64
    ids = torch.randint(5, 60, (1, most))
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.randint(5, 60, (1, most + 1)))


def test_other_dtypes_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"expected float32 on the CPU, got torch.bfloat16"):
        walk(make_model("bert").bfloat16(), batches(), lambda stage, seen: None)


def test_a_length_that_special_tokens_fill_is_refused() -> None:
    tokenizer = SimpleNamespace(num_special_tokens_to_add=lambda pair: 3 if pair else 2)
    with pytest.raises(ValueError, match=r"\(--max-length\) 2: expected 3 or more, .* adds 2 tok"):
        calibration_batches(tokenizer, ["a"], max_length=2)


@pytest.mark.parametrize("name", ["max_length", "batch_size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0: expected 1 or more"):
        calibration_batches(None, ["a"], **{name: 0})


def test_queries_keys_and_values_share_one_decomposition(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    eigh, calls = torch.linalg.eigh, []

    def counted(matrix: Tensor) -> Any:
        calls.append(matrix.shape)
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    model = make_model("bert")
    formats = dict.fromkeys(encoder_linears(model), Format(Pattern.parse("2:4"), None))
    compress_layers(model, batches(), formats, method="alps", progress=False)
    assert len(calls) == 2 * 4  # two layers of four stages, twelve linear layers


def test_more_inputs_are_decomposed_anew() -> None:
    statistics = InputStatistics(2)
    statistics.add(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    first = statistics.factors(0.1)
    assert statistics.factors(0.1) is first and statistics.factors(0.2) is not first
    statistics.add(torch.tensor([[1.0, 1.0]]))
    assert torch.equal(statistics.factors(0.1).hessian, statistics.hessian(0.1))
