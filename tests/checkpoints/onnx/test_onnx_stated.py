"""Numbers that the graph and config.json both state: they agree, or the graph is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

onnx = pytest.importorskip("onnx")


@pytest.fixture
def opened(dynamic: Path, exported: Callable[..., Path]) -> Callable[..., Any]:
    """opened(epsilon, **config) -> the checkpoint of a graph whose norms add ``epsilon``."""

    def open_changed(epsilon: float | None, **config: Any) -> Any:
        def written(model: Any) -> Any:
            for node in model.graph.node:
                for attribute in node.attribute if epsilon is not None else ():
                    if attribute.name == "epsilon":
                        attribute.f = epsilon
            return model

        directory = exported(dynamic, written, "dynamic")
        path = directory / "config.json"
        changed = json.loads(path.read_text()) | config
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))
        return open_checkpoint(directory, finalise={"activations": "dynamic"})

    return open_changed


@pytest.mark.parametrize("heads", [2, 8])
def test_another_number_of_heads_is_refused(heads: int, opened: Callable[..., Any]) -> None:
    message = rf"layer.0/attention/self.*heads have 8 features, .* hidden size of 32 in {heads} h"
    with pytest.raises(CheckpointError, match=message):
        opened(None, num_attention_heads=heads)


def test_another_epsilon_is_refused(opened: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=r"LayerNorm.* epsilon 0.001, .*_eps 1e-12; pass the"):
        opened(1e-3)


def test_epsilons_that_float16_has_rounded_are_the_same(opened: Callable[..., Any]) -> None:
    assert opened(1e-7).config["layer_norm_eps"] == 1e-12


def test_an_epsilon_that_config_json_lacks_is_the_graphs(opened: Callable[..., Any]) -> None:
    checkpoint = opened(2**-10, layer_norm_eps=...)
    assert checkpoint.config["layer_norm_eps"] == 2**-10
    step = "layer_norm_eps = 0.000977, of LayerNormalization /embeddings/LayerNorm/LayerNormaliz"
    assert any(found.startswith(step) for found in checkpoint.steps)
