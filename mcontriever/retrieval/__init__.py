"""Retrieval is here so that a trained encoder answers questions: passages become vectors, an index, and results."""

from __future__ import annotations

from .embed import EmbedSettings, embed
from .index import DenseIndex, IndexSettings, build_index
from .lexical import LexicalIndex
from .searcher import Hit, Searcher
from .terminal import SearchSettings, search_command
from .vectors import Vectors

__all__ = [
    "DenseIndex",
    "EmbedSettings",
    "Hit",
    "IndexSettings",
    "LexicalIndex",
    "SearchSettings",
    "Searcher",
    "Vectors",
    "build_index",
    "embed",
    "search_command",
]
