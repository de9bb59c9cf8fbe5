"""The search index of the process, opened at startup. It serves the model that made its vectors."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request

from app.api.dependencies import parts_of
from app.http.problems import NoSearchIndexError
from models.interface.home import expand_home
from models.interface.runtime import Runtime
from models.search.index import SearchIndex


def open_search_index(folder: Path | None, runtime: Runtime) -> SearchIndex | None:
    """Open the index in `folder`, if set. Raises SearchIndexError if it is damaged, or if no served model made its
    vectors. Call it after the runtime has started: PyTorch must be loaded before the libraries of the index."""
    if folder is None:
        return None
    index = SearchIndex.open(expand_home(folder))
    index.check_model({name: card.fingerprint for name, card in runtime.cards.items()})
    return index


def search_index_of(request: Request) -> SearchIndex:
    """Return the index of the process. Raises NoSearchIndexError."""
    index = parts_of(request).search_index
    if index is None:
        raise NoSearchIndexError
    return index


def search_index_for(request: Request, fingerprint: str) -> SearchIndex:
    """Return the index if the model with `fingerprint` made its vectors. Raises NoSearchIndexError."""
    index = search_index_of(request)
    if index.manifest.fingerprint != fingerprint:
        raise NoSearchIndexError(index.manifest.model)
    return index
