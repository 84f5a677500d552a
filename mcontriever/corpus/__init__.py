"""Raw text in many languages becomes token shards here, so that training never parses, tokenizes or guesses."""

from __future__ import annotations

from .files import language_of
from .formats import Document, Passage, Query, read_objects, read_qrels, read_queries
from .passages import read_passages
from .prepare import PrepareSettings, prepare
from .shards import NO_ARTICLE, Shards
from .streams import read_lines
from .tokenizer import Tokenizer

__all__ = [
    "NO_ARTICLE",
    "Document",
    "Passage",
    "PrepareSettings",
    "Query",
    "Shards",
    "Tokenizer",
    "language_of",
    "prepare",
    "read_lines",
    "read_objects",
    "read_passages",
    "read_qrels",
    "read_queries",
]
