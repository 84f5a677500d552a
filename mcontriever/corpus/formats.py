"""What is read whole, for training on labels and for evaluation: queries, judgements; and the words for all text.

A bad line here is an error with `file:line` rather than something skipped, because what is skipped in silence is missed
in the results. Text to learn from, which no one has checked line by line, is read by `readers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import language_of
from .rows import filled, id_of, located, parse_object
from .streams import BadText, read_lines

_QRELS_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Document:
    """One text to learn from. Documents of equal `article` are language versions of the same article."""

    id: str
    language: str
    text: str
    article: str | None
    title: str = ""
    """where there is one, `text` begins with it and a line end"""


@dataclass(frozen=True)
class Passage:
    """One text to be found."""

    id: str
    title: str
    text: str
    language: str


@dataclass(frozen=True)
class Query:
    """One question."""

    id: str
    text: str
    language: str


def read_queries(path: Path | str) -> list[Query]:
    """The queries of a file: `{"_id", "text"}`."""
    file = _existing(path, "queries.<lang>.jsonl")
    queries, check = [], unique("query")
    for line, row in read_objects(file):
        with located(f"{file}:{line}"):
            queries.append(Query(check(id_of(row)), filled(row, "text"), language_of(file)))
    if not queries:
        raise DataError(f"{file}: empty; expected one query a line")
    return queries


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """Judgements as BEIR writes them: tab-separated under the header `query-id corpus-id score`."""
    file = _existing(path, "qrels/<split>.<lang>.tsv")
    qrels: dict[str, dict[str, int]] = {}
    for line, text in read_lines(file):
        cells, where = text.rstrip("\n").split("\t"), f"{file}:{line}"
        if line == 1:
            if cells != _QRELS_HEADER:
                raise DataError(f"{where}: expected the header {' '.join(_QRELS_HEADER)} (tab-separated), got {text!r}")
            continue
        try:
            query, passage, score = cells[0], cells[1], int(cells[2])
            if len(cells) != 3 or not query or not passage:
                raise ValueError
        except (ValueError, IndexError):
            raise DataError(f"{where}: expected query id, passage id and a whole number, got {text!r}") from None
        if qrels.setdefault(query, {}).setdefault(passage, score) != score:
            raise DataError(f"{where}: {query} {passage} was judged {qrels[query][passage]} above, {score} here")
    if not qrels:
        raise DataError(f"{file}: no judgements in it")
    return qrels


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects of a file with one a line; blank lines are passed over."""
    for line, text in read_lines(file):
        if text.strip():
            with located(f"{file}:{line}"):
                row = parse_object(text)
            yield line, row


def _existing(path: Path | str, expected: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    return path


def unique(what: str) -> Callable[[str], str]:
    """A function that gives each id back, and complains of one it has seen before."""
    seen: set[str] = set()

    def check(name: str) -> str:
        if name in seen:
            raise BadText(f"the {what} id {name!r} occurs already above or in a file before this one")
        seen.add(name)
        return name

    return check
