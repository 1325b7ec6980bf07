"""modules.json and its settings -> a description of a sentence-transformers pipeline.

Keys, values and modules that would change the embeddings in a way not implemented here are
refused, never skipped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pooling import POOLINGS

logger = logging.getLogger(__name__)

# Older files name each mode by a flag; joined results follow this order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Names that sentence-transformers knows whatever the files say.
_PROMPTS = {"query": "", "document": ""}
_TRANSFORMER_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "processing_kwargs": ({},),
    "unpad_inputs": (None, True, False),  # here inputs are always unpadded
    "tokenizer_name_or_path": (None,),
}
_DENSE_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}
_NORMALIZE_DEFAULTS = {key: _DENSE_DEFAULTS[key] for key in list(_DENSE_DEFAULTS)[:2]}
_DENSE_ACTIVATIONS: dict[str, str | None] = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.linear.Identity": None,
}


@dataclass(frozen=True)
class Normalize:
    """Scale each embedding to length 1."""


@dataclass(frozen=True)
class Dense:
    """A linear layer on the embeddings; its weights lie in ``directory``/model.safetensors."""

    directory: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str | None


@dataclass(frozen=True)
class Pipeline:
    """What turns sentences into embeddings around the encoder.

    Attributes:
        features: of an embedding.
        poolings: modes, joined side by side.
        steps: what follows the pooling.
        max_length: tokens a sentence is cut to, or None: the tokenizer's own limit.
        lower_case: whether texts are lower-cased before the tokenizer.
        prompt: text put before each sentence unless the caller names another.
        prompts: others by name.
        pools_prompt: whether a prompt's tokens may be pooled; without them is not supported.
        truncate_dim: features kept, or None.
    """

    features: int
    poolings: tuple[str, ...] = ("mean",)
    steps: tuple[Normalize | Dense, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=lambda: dict(_PROMPTS))
    pools_prompt: bool = True
    truncate_dim: int | None = None

    def chosen_prompt(self, name: str | None, text: str | None) -> str:
        """What to put before each sentence.

        Args:
            name: of a prompt, or None.
            text: of a prompt, or None; without either it is the default one.

        Raises:
            TypeError: they are no strings.
            ValueError: both are given, there is no such name, or the prompt's tokens would have to
                be left out of the pooling.
        """
        for argument, value in (("prompt_name", name), ("prompt", text)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{argument}: expected a string, got {type(value).__name__}")
        if name is not None and text is not None:
            raise ValueError("prompt_name and prompt: expected one of them, got both")
        if name is not None and name not in self.prompts:
            raise ValueError(
                f"prompt_name {name!r}: expected one of {', '.join(map(repr, self.prompts))}"
            )
        prompt = self.prompt if name is None else self.prompts[name]
        prompt = prompt if text is None else text
        if prompt and not self.pools_prompt:
            raise ValueError(
                f"prompt {prompt!r}: pooling without the prompt's tokens is not supported, which "
                "include_prompt asks for"
            )
        return prompt


def runs_base_model(directory: Path) -> bool:
    """Whether a pipeline lies here that runs the base model whatever the checkpoint's class is."""
    path = directory / "modules.json"
    if not path.is_file():
        return False
    task = _read(directory / "sentence_bert_config.json").get("transformer_task")
    # Before sentence-transformers 6 the class alone said that a SPLADE model predicts words.
    kinds = [str(module.get("type")) for module in _read_list(path) if isinstance(module, dict)]
    predicts_words = any(kind.endswith(".MLMTransformer") for kind in kinds)
    return task in (None, "feature-extraction") and not predicts_words


def read_pipeline(directory: Path, hidden: int) -> Pipeline:
    """Read a directory's pipeline; without modules.json, mean pooling, with a warning.

    Args:
        directory: holds the files.
        hidden: the encoder's output features.

    Raises:
        ValueError: a file is damaged or asks for what does not run here.
    """
    path = directory / "modules.json"
    if not path.is_file():
        logger.warning("%s: no modules.json, sentences are embedded by mean pooling", directory)
        return Pipeline(hidden)
    modules = [(_kind(path, module), module) for module in _read_list(path)]
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"}:
        raise ValueError(
            f"{path}: modules {kinds}: expected Transformer, Pooling, then any of Dense, Normalize"
        )
    if modules[0][1]["path"]:
        raise ValueError(f"{path}: expected the Transformer's files at the root, path ''")
    max_length, lower_case = _transformer(directory)
    prompt, prompts, truncate_dim = _model_settings(directory)
    pooling = directory / modules[1][1]["path"] / "config.json"
    poolings, pools_prompt = _pooling(pooling, hidden)
    steps = tuple(_step(kind, directory / module["path"]) for kind, module in modules[2:])
    features = _features(path, hidden * len(poolings), steps)
    if truncate_dim is not None:
        features = min(features, truncate_dim)
    pipeline = Pipeline(
        features,
        poolings,
        steps,
        max_length,
        lower_case,
        prompt,
        prompts,
        pools_prompt,
        truncate_dim,
    )
    pipeline.chosen_prompt(None, None)
    return pipeline


def _kind(path: Path, module: Any) -> str:
    kind = module.get("type") if isinstance(module, dict) else None
    folder = module.get("path") if isinstance(module, dict) else None
    if not isinstance(kind, str) or not isinstance(folder, str) or ".." in Path(folder).parts:
        raise ValueError(f"{path}: expected modules with a type and a path inside, got {module!r}")
    root, _, name = kind.partition(".")
    if root != "sentence_transformers":
        raise ValueError(f"{path}: module {kind!r} is not one of sentence-transformers' own")
    return name.rpartition(".")[2]


def _transformer(directory: Path) -> tuple[int | None, bool]:
    path = directory / "sentence_bert_config.json"
    data = _read(path)
    _check_keys(path, data, _TRANSFORMER_DEFAULTS, {"max_seq_length", "do_lower_case"})
    length = data.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"{path}: max_seq_length {length!r}: expected an integer above 0")
    return length, bool(data.get("do_lower_case", False))


def _model_settings(directory: Path) -> tuple[str, dict[str, str], int | None]:
    path = directory / "config_sentence_transformers.json"
    data = _read(path)
    name, stated = data.get("default_prompt_name"), data.get("prompts") or {}
    if not isinstance(stated, dict) or not all(isinstance(x, str | None) for x in stated.values()):
        raise ValueError(f"{path}: expected prompts by name, got {str(stated)[:80]}")
    prompts = _PROMPTS | {key: text or "" for key, text in stated.items()}
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise ValueError(
            f"{path}: default_prompt_name {name!r}: expected one of the prompts, "
            f"{', '.join(map(repr, prompts))}"
        )
    prompt = "" if name is None else prompts[name]
    truncate_dim = data.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise ValueError(f"{path}: truncate_dim {truncate_dim!r}: expected an integer above 0")
    return prompt, prompts, truncate_dim


def _pooling(path: Path, hidden: int) -> tuple[tuple[str, ...], bool]:
    """(modes, whether a prompt's tokens are pooled)"""
    if not path.is_file():
        raise ValueError(f"{path}: missing; it says how to pool, as modules.json announces")
    data = _read(path)
    sizes = {"word_embedding_dimension", "embedding_dimension"}
    _check_keys(path, data, {}, {*sizes, *_FLAGS, "pooling_mode", "include_prompt"})
    for key in sizes & set(data):
        if data[key] != hidden:
            raise ValueError(f"{path}: {key} {data[key]!r}: the encoder gives {hidden} features")
    modes = data.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if data.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or any(mode not in POOLINGS for mode in modes):
        raise ValueError(f"{path}: pooling_mode {modes!r}: expected some of {', '.join(POOLINGS)}")
    return tuple(modes), bool(data.get("include_prompt", True))


def _step(kind: str, directory: Path) -> Normalize | Dense:
    path = directory / "config.json"
    data = _read(path)
    if kind == "Normalize":
        _check_keys(path, data, _NORMALIZE_DEFAULTS, set())
        return Normalize()
    sizes = ("in_features", "out_features")
    _check_keys(path, data, _DENSE_DEFAULTS, {*sizes, "bias", "activation_function"})
    if any(type(data.get(key)) is not int for key in sizes):
        raise ValueError(f"{path}: expected in_features and out_features as integers")
    name = data.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in _DENSE_ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function {name!r} is not supported, expected one of "
            f"{', '.join(_DENSE_ACTIVATIONS)}"
        )
    bias = bool(data.get("bias", True))
    activation = _DENSE_ACTIVATIONS[name]
    return Dense(directory, data["in_features"], data["out_features"], bias, activation)


def _features(path: Path, width: int, steps: tuple[Normalize | Dense, ...]) -> int:
    """Follow the number of features from the pooling to the end."""
    for step in steps:
        if isinstance(step, Dense):
            if step.inputs != width:
                raise ValueError(f"{path}: Dense takes {step.inputs} features, it is given {width}")
            width = step.outputs
    return width


def _check_keys(
    path: Path, data: dict[str, Any], defaults: dict[str, tuple[Any, ...]], read: set[str]
) -> None:
    for key, value in data.items():
        if key not in read and value not in defaults.get(key, ()):
            raise ValueError(f"{path}: {key} {value!r} is not supported")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; a missing file is an empty one."""
    if not path.is_file():
        return {}
    data = _parse(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_list(path: Path) -> list[Any]:
    data = _parse(path)
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a JSON list, got {type(data).__name__}")
    return data


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
