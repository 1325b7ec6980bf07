"""sparse-runtime inspect"""

from __future__ import annotations

from ..options import Debug, Json, LocalFilesOnly, Revision, Source
from ..output import show


def inspect(
    source: Source,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which structure every matrix' zeros have, and what each format would make of it."""
    from ... import inspect as examine

    show(examine(source, revision=revision, local_files_only=local_files_only), as_json)
