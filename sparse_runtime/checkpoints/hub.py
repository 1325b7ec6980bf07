"""Downloads from the Hugging Face hub: only files that a conversion reads or carries along."""

from __future__ import annotations

import glob
from pathlib import Path

from .errors import CheckpointError

_METADATA = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    # The modules of sentence-transformers: a numbered folder each, of which Dense has weights.
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
    "[0-9]*_*/pytorch_model.bin",
    # Structured masks beside a plain checkpoint (layouts/mask_files.py, layouts/cofi.py).
    "head_mask.pt",
    "neuron_mask.pt",
    "zs.pt",
    # What states the integers of a float checkpoint (layouts/stated_quantization.py).
    "quantization.safetensors",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
_GRAPHS = ("model.onnx",)
# What exporters call the file of a graph's weights that protobuf cannot hold.
_EXTERNAL_DATA = ("_data", ".data")


def download(
    repo_id: str,
    *,
    file: str | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Snapshot directory of a hub repository.

    Pickles are fetched where it has nothing safer, and a graph where it has no other weights.
    With ``file``, that weights file is fetched and no other.

    Raises:
        CheckpointError: one line for whatever the hub or the network says.
    """
    from huggingface_hub import snapshot_download

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
            )
        )

    def holds(directory: Path, patterns: tuple[str, ...]) -> bool:
        return any(any(directory.glob(pattern)) for pattern in patterns)

    try:
        if file is not None:
            return fetch((*_METADATA, *_with_data(glob.escape(file))))
        directory = fetch(_METADATA + _SAFETENSORS)
        if not holds(directory, _SAFETENSORS):
            directory = fetch(_METADATA + _PICKLES)
            if not holds(directory, _PICKLES):
                directory = fetch((*_METADATA, *_with_data(*_GRAPHS)))
    except Exception as error:
        raise CheckpointError(_explain(error, repo_id, revision)) from error
    return directory


def _with_data(*files: str) -> tuple[str, ...]:
    graphs = [name for name in files if name.endswith(".onnx")]
    return (*files, *(f"{name}{ending}" for name in graphs for ending in _EXTERNAL_DATA))


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import errors

    # The order matters: a gated repository is a kind of one that is not found.
    known: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "access is restricted; accept its terms and pass token="),
        (
            errors.RepositoryNotFoundError,
            "neither a local directory nor a public model of the hub; check the spelling, and "
            "pass token= if it is private",
        ),
        (errors.RevisionNotFoundError, f"the repository has no revision {revision!r}"),
        (errors.HFValidationError, "not a hub id ('name' or 'owner/name')"),
        (
            errors.LocalEntryNotFoundError,
            "neither a local directory nor in the local cache, and the hub was not asked or not "
            "reached; check the path, the network and local_files_only=",
        ),
    )
    for kind, text in known:
        if isinstance(error, kind):
            return f"{repo_id}: {text}"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{repo_id}: the hub could not be read ({type(error).__name__}: {first_line})"
