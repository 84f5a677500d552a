"""Test sets as folders of files, so that any language's questions can be asked of any language's passages.

Layout: `corpus.<lang>.jsonl[.gz]`, `queries.<lang>.jsonl[.gz]`, `qrels/<split>.<lang>.tsv`, where the qrels are
those of the passages' language and a question has the same id in every language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..corpus.formats import Passage, Query, read_qrels, read_queries
from ..corpus.passages import read_passages
from ..errors import DataError, UsageError, did_you_mean


@dataclass(frozen=True)
class Task:
    """Questions of one language over passages of one language, with what is relevant to them."""

    query_language: str
    passage_language: str
    queries: tuple[Query, ...]
    passages: tuple[Passage, ...]
    qrels: dict[str, dict[str, int]]

    @property
    def name(self) -> str:
        """`ar-en`: Arabic questions, English passages."""
        return f"{self.query_language}-{self.passage_language}"


class EvaluationSet:
    """The files of a test set, read when a task asks for them; a corpus is read once."""

    def __init__(
        self, path: Path, corpora: dict[str, Path], queries: dict[str, Path], qrels: dict[tuple[str, str], Path]
    ) -> None:
        self.path, self._corpora, self._queries, self._qrels = path, corpora, queries, qrels
        self._read: dict[str, tuple[Passage, ...]] = {}

    @classmethod
    def open(cls, folder: Path | str) -> EvaluationSet:
        """Look at what the folder holds; nothing is read yet."""
        path = Path(folder)
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; expected corpus.<lang>.jsonl, queries.<lang>.jsonl and qrels/")
        corpora = _by_language(path.glob("corpus.*"), r"corpus\.(.+)\.jsonl(?:\.gz)?")
        queries = _by_language(path.glob("queries.*"), r"queries\.(.+)\.jsonl(?:\.gz)?")
        qrels = {}
        for file in sorted((path / "qrels").glob("*.tsv")):
            if match := re.fullmatch(r"([^.]+)\.(.+)\.tsv", file.name):
                qrels[match[1], match[2]] = file
        for what, found in (("corpus.<lang>.jsonl", corpora), ("queries.<lang>.jsonl", queries)):
            if not found:
                raise DataError(f"{path}: no {what}[.gz] in it; expected a test set's folder")
        if not qrels:
            raise DataError(f"{path}: no qrels/<split>.<lang>.tsv in it; expected a test set's folder")
        return cls(path, corpora, queries, qrels)

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """Every language over its own passages, then every other language over English ones."""
        self._check_split(split)
        judged = [language for language in self._corpora if (split, language) in self._qrels]
        pairs = [(language, language) for language in judged if language in self._queries]
        if "en" in judged:
            pairs += [(language, "en") for language in self._queries if language != "en"]
        return pairs

    def task(self, query_language: str, passage_language: str, split: str) -> Task:
        """Read one task: the questions that the qrels judge, in the qrels' order."""
        self._check_split(split)
        at = f"{self.path}: task {query_language}-{passage_language}"
        if query_language not in self._queries:
            raise UsageError(f"{at}: no queries.{query_language}; {did_you_mean(query_language, self._queries)}")
        if passage_language not in self._corpora:
            raise UsageError(f"{at}: no corpus.{passage_language}; {did_you_mean(passage_language, self._corpora)}")
        if (split, passage_language) not in self._qrels:
            raise UsageError(f"{at}: no qrels/{split}.{passage_language}.tsv")
        file = self._qrels[split, passage_language]
        qrels = read_qrels(file)
        if not qrels:
            raise DataError(f"{file}: judges no query")
        known = {query.id: query for query in read_queries(self._queries[query_language])}
        absent = [query for query in qrels if query not in known]
        if absent:
            # Their zeros would look like the retriever's failure.
            where = self._queries[query_language].name
            raise DataError(f"{file}: query {absent[0]!r} (and {len(absent) - 1} more) is not in {where}")
        passages = self._passages(passage_language)
        ids = {passage.id for passage in passages}
        if not any(passage in ids for judged in qrels.values() for passage in judged):
            raise DataError(f"{file}: none of its passages is in {self._corpora[passage_language].name}")
        return Task(query_language, passage_language, tuple(known[query] for query in qrels), passages, qrels)

    def _passages(self, language: str) -> tuple[Passage, ...]:
        if language not in self._read:
            self._read[language] = tuple(read_passages(self._corpora[language]))
        return self._read[language]

    def _check_split(self, split: str) -> None:
        splits = sorted({known for known, _ in self._qrels})
        if split not in splits:
            raise UsageError(f"{self.path}: no qrels/{split}.<lang>.tsv; {did_you_mean(split, splits)}")


def parse_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """`ar-en` to (questions' language, passages' language); each only once, for a result is known by its pair."""
    pairs: list[tuple[str, str]] = []
    for word in words:
        queries, dash, passages = word.partition("-")
        if not (queries and dash and passages):
            raise UsageError(f"pair {word!r} must look like ar-en: the questions' language, then the passages'")
        if (queries, passages) in pairs:
            raise UsageError(f"pair {word!r} is given twice; give each once")
        pairs.append((queries, passages))
    return pairs


def _by_language(files: Iterable[Path], pattern: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(files):
        if match := re.fullmatch(pattern, file.name):
            if match[1] in found:
                raise DataError(f"{file}: there is {found[match[1]].name} too; keep one of them")
            found[match[1]] = file
    return found
