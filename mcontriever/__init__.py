"""A multilingual, cross-lingual dense retriever.

    import mcontriever
    encoder = mcontriever.load("path/or/hub-name")
    vectors = encoder.encode_queries(["Nani aligundua penisilini?"])

Importing the package is cheap: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .encoder import Encoder, load
    from .retrieval import Searcher

__all__ = ["Encoder", "Searcher", "__version__", "load"]

_HOMES = {"load": "mcontriever.encoder", "Encoder": "mcontriever.encoder", "Searcher": "mcontriever.retrieval"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcontriever' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
