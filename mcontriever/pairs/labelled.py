"""Labelled pairs: a query and a passage that answers it, from our own lines or a BEIR folder.

Everything is tokenized once at the start, and an epoch is a computed permutation, so a batch is again a pure function
of (seed, step). How texts are joined and prefixed is the checkpoint's contract, which lives further up the house: it is
handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..corpus import Passage, Tokenizer, read_objects, read_passages, read_qrels, read_queries
from ..corpus.rows import filled, located, text_of
from ..errors import DataError
from ..settings import in_range
from .mixture import Mixture
from .packing import Packed, PairBatch, pack

_LINE = '{"query": text, "positive": {"title": text, "text": text}, "group"?: text}'


@dataclass(frozen=True, kw_only=True)
class LabelledSettings:
    """Query-passage pairs for fine-tuning."""

    file: str = ""
    """a .jsonl[.gz] of {"query", "positive": {"title", "text"}} lines, or a BEIR folder with qrels/train.<lang>.tsv"""
    query_max_length: int = 64
    """tokens of a query, special tokens included"""
    passage_max_length: int = 256
    """tokens of a passage, special tokens included"""

    def __post_init__(self) -> None:
        in_range("labelled.query_max_length", self.query_max_length, 4, 2**20)
        in_range("labelled.passage_max_length", self.passage_max_length, 4, 2**20)


@dataclass(frozen=True)
class Example:
    """One labelled pair; examples of equal `topic` or equal query are never each other's negatives."""

    query: str
    title: str
    text: str
    topic: str
    language: str


class LabelledPairs:
    """Batches of labelled pairs. `len` is the number of examples, an epoch."""

    def __init__(
        self,
        settings: LabelledSettings,
        tokenizer: Tokenizer,
        seed: int,
        *,
        query_prefix: str = "",
        passage_prefix: str = "",
        title_joiner: str = " ",
        lowercase: bool = False,
    ) -> None:
        def prepared(prefix: str, text: str) -> str:
            return (prefix + text).lower() if lowercase else prefix + text

        self.settings, self.tokenizer = settings, tokenizer
        examples = list(read_examples(settings.file))
        self.languages = tuple(sorted({example.language for example in examples}))
        places = {language: place for place, language in enumerate(self.languages)}
        self._language = np.array([places[example.language] for example in examples])
        self._group = groups(examples)
        self._queries = tokenizer.encode([prepared(query_prefix, example.query) for example in examples])
        joined = [title_joiner.join(filter(None, (example.title, example.text))) for example in examples]
        self._passages = tokenizer.encode([prepared(passage_prefix, text) for text in joined])
        self._order = Mixture([len(examples)], 0.0, seed)

    def __len__(self) -> int:
        return len(self._queries)

    def cut(self) -> str:
        """How many of the texts are too long and lose their end; empty where none are."""
        told = []
        for side, plural, texts in (("query", "queries", self._queries), ("passage", "passages", self._passages)):
            longest = getattr(self.settings, f"{side}_max_length")
            if count := sum(len(text) + 2 > longest for text in texts):
                told.append(
                    f"labelled.{side}_max_length {longest} cuts off the end of {count:,} of {len(texts):,} {plural}"
                )
        return "; ".join(told)

    def batch(self, step: int, samples: NDArray[np.integer], batch_size: int) -> PairBatch:
        """The pairs of some `samples` (0 … batch_size-1) of a step's global batch."""
        _, rows = self._order.draw(step * batch_size + np.asarray(samples, dtype=np.int64))
        return PairBatch(
            self._pack(self._queries, rows, self.settings.query_max_length),
            self._pack(self._passages, rows, self.settings.passage_max_length),
            torch.from_numpy(self._group[rows]),
            torch.from_numpy(self._language[rows]),
            self.languages,
        )

    def _pack(self, texts: list[NDArray[np.int32]], rows: NDArray[np.int64], max_length: int) -> Packed:
        return pack([texts[row] for row in rows], self.tokenizer.bos, self.tokenizer.eos, max_length)


def read_examples(path: Path | str) -> Iterator[Example]:
    """The labelled pairs of a file of lines, or of a BEIR folder's training judgements."""
    path = Path(path)
    if path.is_dir():
        examples = _read_folder(path)
    elif path.is_file():
        examples = _read_lines(path)
    else:
        raise DataError(f"{path}: no such file or folder; expected lines of {_LINE}, or a BEIR folder")
    empty = True
    for example in examples:
        empty = False
        yield example
    if empty:
        raise DataError(f"{path}: no labelled pair in it")


def groups(examples: list[Example]) -> NDArray[np.int64]:
    """A number for each example, equal where two share a topic or a query, directly or through others.

    A query with two right passages makes each of them a wrong negative for the other's row.
    """
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = parents[parent]
            node = parents[node]
        return node

    for example in examples:
        parents[root(("query", example.query))] = root(("topic", example.topic))
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(root(("topic", example.topic)), len(numbers)) for example in examples])


def _read_lines(file: Path) -> Iterator[Example]:
    for line, row in read_objects(file):
        where = f"{file}:{line}"
        positive = row.get("positive")
        if not isinstance(positive, dict):
            raise DataError(f"{where}: expected {_LINE}, got the keys {', '.join(map(repr, row)) or 'none'}")
        with located(where):
            query, text, title = filled(row, "query"), filled(positive, "text"), text_of(positive, "title", "")
        topic = row.get("group")
        if topic is not None and not isinstance(topic, str | int):
            raise DataError(f"{where}: 'group' must be text, got {topic!r}")
        named = f"text:{title}\n{text}" if topic is None else f"group:{topic}"
        yield Example(query, title, text, named, str(row.get("language") or ""))


def _read_folder(folder: Path) -> Iterator[Example]:
    judged = sorted((folder / "qrels").glob("train.*.tsv"))
    if not judged:
        raise DataError(f"{folder}: no training judgements in it; expected qrels/train.<lang>.tsv")
    for qrels_file in judged:
        language = qrels_file.name.split(".")[1]
        queries = {query.id: query.text for query in read_queries(_either(folder, f"queries.{language}.jsonl"))}
        qrels = read_qrels(qrels_file)
        wanted = {passage for scores in qrels.values() for passage, score in scores.items() if score > 0}
        passages: dict[str, Passage] = {}
        for passage in read_passages(_either(folder, f"corpus.{language}.jsonl")):
            if passage.id in wanted:
                passages[passage.id] = passage
        for query, scores in qrels.items():
            for name in (name for name, score in scores.items() if score > 0):
                if query not in queries or name not in passages:
                    absent = f"query {query!r}" if query not in queries else f"passage {name!r}"
                    raise DataError(f"{qrels_file}: judges {absent}, which is not in the folder")
                found = passages[name]
                yield Example(queries[query], found.title, found.text, f"{language}:{name}", language)


def _either(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name
