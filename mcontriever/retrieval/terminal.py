"""Search results on a terminal: `mcontriever search INDEX "question"`.

Texts of several scripts and both directions share the screen. Each is put between Unicode isolates, line by line, so
that an Arabic passage can neither reorder the number before it nor the line after it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..languages import language
from ..settings import in_range
from .searcher import Hit, Searcher, check_queries

FIRST_STRONG, RIGHT_TO_LEFT, POP = "\u2068", "\u2067", "\u2069"
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")  # an escape sequence in a passage stays text


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Answer a question from an index."""

    index: str
    """folder written by `mcontriever index`"""
    query: str
    """the question, in any language"""
    k: int = 5
    """how many passages to show"""
    language: str = ""
    """only passages in this language (a code such as en); all by default; dense search only"""
    by: Literal["dense", "bm25"] = "dense"
    """dense: by meaning, across languages; bm25: by shared words"""
    checkpoint: str = ""
    """the encoder that made the index; by default where the index says it was"""
    device: str = ""
    """cpu, cuda, cuda:1 ...; by default a GPU where there is one"""
    lines: int = 3
    """lines of each passage to show; 0 shows all"""

    def __post_init__(self) -> None:
        in_range("k", self.k, 1, 1_000_000)
        in_range("lines", self.lines, 0, 1_000_000)


def search_command(settings: SearchSettings) -> list[Hit]:
    """Search, show, and return what was shown."""
    check_queries([settings.query])  # before anything large is opened
    if settings.by == "bm25":
        if settings.language:
            raise UsageError("--language keeps dense search to one language; BM25 has no such option")
        hits = Searcher.open_lexical(settings.index).search_lexical(settings.query, settings.k)
    else:
        searcher = Searcher.open(settings.index, checkpoint=settings.checkpoint or None, device=settings.device or None)
        hits = searcher.search(settings.query, settings.k, settings.language or None)
    sys.stdout.write(show(settings.query, hits, lines=settings.lines))
    return hits


def show(query: str, hits: Sequence[Hit], *, lines: int = 3, width: int | None = None) -> str:
    """The results as text for a terminal of that width (its own by default)."""
    from rich.console import Console

    width = max(width or Console().width, 20)
    shown = [isolate(_clean(query)), ""]
    if not hits:
        shown.append("no passage shares a word with the query")
    for hit in hits:
        name = language(hit.language).name or "?"
        shown.append(f"{hit.rank:>2}. {hit.score:.3f}  {name}  {isolate(_clean(hit.title or hit.id), hit.language)}")
        wrapped = wrap(_clean(hit.text), width - 6)  # indented by four, and room for an ellipsis
        if lines and len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
        shown += [f"    {isolate(line, hit.language)}" for line in wrapped]
    return "\n".join(shown) + "\n"


def isolate(text: str, code: str = "") -> str:
    """The text between isolates: right to left for languages so written, else by its first strong letter."""
    return f"{RIGHT_TO_LEFT if code and language(code).right_to_left else FIRST_STRONG}{text}{POP}"


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` terminal cells (wide characters count two, combining marks none)."""
    from rich.console import Console
    from rich.text import Text

    lines = Text(text).wrap(Console(width=width), width)
    return [line.plain.rstrip() for line in lines] or [""]


def _clean(text: str) -> str:
    return " ".join(text.translate(_CONTROL).split())
