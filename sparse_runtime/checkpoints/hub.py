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
    # Structured masks beside a plain checkpoint (layouts/mask_files.py).
    "head_mask.pt",
    "neuron_mask.pt",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def download(
    repo_id: str,
    *,
    file: str | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Snapshot directory of a hub repository; pickles are fetched where it has nothing safer.

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

    try:
        if file is not None:
            return fetch((*_METADATA, glob.escape(file)))
        directory = fetch(_METADATA + _SAFETENSORS)
        if not any(any(directory.glob(pattern)) for pattern in _SAFETENSORS):
            directory = fetch(_METADATA + _PICKLES)
    except Exception as error:
        raise CheckpointError(_explain(error, repo_id, revision)) from error
    return directory


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
