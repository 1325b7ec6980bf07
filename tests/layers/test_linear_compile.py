"""torch.compile without a graph break, and torch.export."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sparse_runtime as sr
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_activations, make_packed

OUT, IN = 21, 43
STATIC = ActivationSpec("static", "uint8", 0.02, 131)
# The C++ kernel's operator, PyTorch's product, and the packed bytes read by tensor operations.
KINDS: dict[str, tuple[str, str, str | ActivationSpec, str]] = {
    "cpu.panels": ("dense", "int8", "dynamic", "cpu"),
    "cpu.panels static": ("2:4", "int8", STATIC, "cpu"),
    "cpu.panels bf16": ("2:4", "bf16", "none", "cpu"),
    "reference dense": ("dense", "int8", "dynamic", "reference"),
    "reference 2:4": ("2:4", "int4", "dynamic", "reference"),
    "reference block": ("block:4x1", "int4", STATIC, "reference"),
    "reference unstructured": ("unstructured", "bf16", "none", "reference"),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def layer_of(kind: str) -> sr.Linear:
    structure, values, activations, backend = KINDS[kind]
    packed = make_packed((OUT, IN), structure, values=values, activations=activations)
    return sr.Linear(packed, make_activations(1, OUT)[0], backend=backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_one_graph_without_a_break(kind: str, dynamic: bool) -> None:
    layer = layer_of(kind)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    for tokens in (2, 4, 5):
        x = make_activations(3 * tokens, IN, seed=tokens).view(3, tokens, IN)
        assert torch.equal(compiled(x), layer(x))
    graphs = [
        graph for graph in counter.graphs if "call_function" in {n.op for n in graph.graph.nodes}
    ]
    assert len(graphs) == (1 if dynamic else 3)


@pytest.mark.parametrize("kind", ["cpu.panels", "cpu.panels bf16"])
def test_compiled_shapes_types_and_modes(kind: str) -> None:
    layer = layer_of(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wide = make_activations(6, IN + 5)
    for x in (wide[0, :IN], wide[:, 2 : 2 + IN], wide[:0, :IN], wide[:, :IN].bfloat16()):
        y = compiled(x)
        assert y.dtype == x.dtype
        assert torch.equal(y, layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(wide[:, :IN])
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, layer(wide[:, :IN]))
    with torch.inference_mode():
        assert torch.equal(compiled(wide[:, :IN]), layer(wide[:, :IN]))


def test_compiled_code_refuses_what_eager_code_refuses() -> None:
    layer = layer_of("cpu.panels")
    compiled = torch.compile(layer, backend="aot_eager")
    with pytest.raises(RuntimeError, match="expected input"):
        compiled(torch.ones(2, IN + 1))
    with pytest.raises(RuntimeError, match="no gradient"):
        compiled(torch.ones(2, IN, requires_grad=True))
    layer.train()
    with pytest.raises(RuntimeError, match="training mode"):
        compiled(torch.ones(2, IN))


def test_a_model_compiles_around_its_layers() -> None:
    def sparse_model() -> nn.Module:
        model = nn.Sequential(nn.Linear(IN, 64), nn.GELU(), nn.Linear(64, OUT)).eval()
        return sr.replace_linears(model, structure="2:4")

    model, x = sparse_model(), make_activations(7, IN)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    # Loading rebuilds the prepared layout, which compiled code must notice.
    other = sparse_model()
    model.load_state_dict(other.state_dict())
    assert torch.equal(compiled(x), other(x))


def test_the_default_backend_compiles_the_operator() -> None:
    layer, x = layer_of("cpu.panels"), make_activations(7, IN)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_export_with_a_dynamic_batch(kind: str, strict: bool) -> None:
    layer, x = layer_of(kind), make_activations(12, IN).view(3, 4, IN)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    uses_kernel = kind.startswith("cpu.panels")
    assert any("sparse_runtime.prepared_linear" in target for target in targets) == uses_kernel
    exported = program.module()

    def check(inputs: Tensor) -> None:
        assert torch.equal(exported(inputs), layer(inputs))

    check(x)
    check(make_activations(20, IN, seed=2).view(5, 4, IN))


def test_layers_that_are_alike_share_one_graph() -> None:
    # What torch calls regional compilation; its limit is eight graphs for one piece of code.
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=9, num_hidden_layers=12, **sizes)).eval()
    sr.replace_linears(model)
    ids = torch.arange(6).view(2, 3)
    with torch.inference_mode():
        expected = model(ids).last_hidden_state
        counter = CompileCounterWithBackend("aot_eager")
        for layer in model.encoder.layer:
            layer.compile(fullgraph=True, backend=counter)
        assert torch.equal(model(ids).last_hidden_state, expected)
    assert counter.frame_count == 1


LOAD_ELSEWHERE = """
import sys
import torch
import sparse_runtime as sr

layers = [sr.Linear.from_dense(torch.nn.Linear(43, 21)) for _ in range(9)]
for load in (lambda: torch.export.load(sys.argv[1]).module(), lambda: torch.jit.load(sys.argv[2])):
    try:
        load()(torch.ones(2, 43))
    except RuntimeError as error:
        assert "not alive in this process; trace the module again" in str(error), error
    else:
        raise AssertionError("it ran a layer of this process")
"""


def test_a_program_from_another_process_runs_no_layer_of_this_one(tmp_path: Path) -> None:
    layer, x = layer_of("cpu.panels"), torch.ones(2, IN)
    program, traced = tmp_path / "program.pt2", tmp_path / "traced.pt"
    torch.export.save(torch.export.export(layer, (x,)), program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(layer, (x,)).save(traced)
    command = [sys.executable, "-W", "ignore", "-c", LOAD_ELSEWHERE, str(program), str(traced)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
