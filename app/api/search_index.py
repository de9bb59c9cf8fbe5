"""The search index of the process: opened at the start, and given to requests whose model made its vectors."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request

from app.api.dependencies import parts_of
from app.http.problems import NoSearchIndexError
from models.interface.home import expand_home
from models.interface.runtime import Runtime
from models.search.index import SearchIndex


def open_search_index(folder: Path | None, runtime: Runtime) -> SearchIndex | None:
    """The index in `folder`, if there is to be one. Raises SearchIndexError for a broken one, and for one whose vectors
    no served model made. After the runtime: below the index are libraries that PyTorch should come before."""
    if folder is None:
        return None
    index = SearchIndex.open(expand_home(folder))
    index.check_model({name: card.fingerprint for name, card in runtime.cards.items()})
    return index


def search_index_of(request: Request) -> SearchIndex:
    """The process's index. Raises NoSearchIndexError."""
    index = parts_of(request).search_index
    if index is None:
        raise NoSearchIndexError
    return index


def search_index_for(request: Request, fingerprint: str) -> SearchIndex:
    """The index of the vectors that the model of that fingerprint makes. Raises NoSearchIndexError."""
    index = search_index_of(request)
    if index.manifest.fingerprint != fingerprint:
        raise NoSearchIndexError(index.manifest.model)
    return index
