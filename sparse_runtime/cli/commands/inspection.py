"""sparse-runtime inspect"""

from __future__ import annotations

from ..options import Debug, Finalise, Json, LocalFilesOnly, Revision, Source, finalise_options
from ..output import show


def inspect(
    source: Source,
    finalise: Finalise = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which structure every matrix' zeros have, and what each format would make of it."""
    from ... import inspect as examine

    report = examine(
        source,
        finalise=finalise_options(finalise),
        revision=revision,
        local_files_only=local_files_only,
    )
    show(report, as_json)
