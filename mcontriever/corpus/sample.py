"""Text to train a tokenizer on: spread evenly over languages, and within each over all of its text.

What is taken is a function of the text alone, of how many characters come before it and how many there are in all, so
that pieces can be read side by side and in any order and give the same sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import workers
from .cleaning import Cleaner
from .encode import PieceTask
from .formats import Document
from .readers import read_piece
from .report import BadLines

_UNIT = 4000  # characters taken at one place
_TICK = 1000  # documents

Characters = dict[str, int]


@dataclass(frozen=True)
class SampleTask:
    """A piece, and by language: the characters before it, the characters in all, and how many are wanted."""

    task: PieceTask
    before: Characters
    sizes: Characters
    wanted: Characters


def count_characters(task: PieceTask) -> dict[str, Any]:
    """How many there are of each language in a piece, after cleaning; and what `Tally` wants to know of it."""
    sizes: Characters = {}
    read, bad = Counter[str](), BadLines(None, strict=task.strict)
    for document in _cleaned(task, bad, read):
        sizes[document.language] = sizes.get(document.language, 0) + len(document.text)
    return {"characters": sizes, "read": dict(read), "bad": bad.count, "first_bad": bad.first}


def take_sample(given: SampleTask) -> list[str]:
    """What a piece gives."""
    before = dict(given.before)
    taken = []
    for document in _cleaned(given.task, BadLines(None, strict=given.task.strict), Counter()):
        language, text = document.language, document.text
        start = before.get(language, 0)
        before[language] = start + len(text)
        size, wanted = given.sizes[language], given.wanted[language]
        taken += [text[begin:end] for begin, end in windows(start, len(text), size, wanted)]
    return taken


def windows(start: int, length: int, size: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Which stretches of a document that begins at character `start` of `size` are taken, if `wanted` are in all."""
    if wanted >= size:
        yield 0, length
        return
    count = max(1, wanted // _UNIT)
    width = wanted // count
    number = max(0, (start - width) * count // size)
    while (at := number * size // count) < start + length:
        begin, end = max(at, start), min(at + width, start + length)
        if begin < end:
            yield begin - start, end - start
        number += 1
        if number == count:
            return


def even_shares(sizes: Mapping[str, int], total: int) -> Characters:
    """Share out `total`: the same for all, and what small ones cannot use goes to the others."""
    shares: Characters = {}
    for done, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, (total - sum(shares.values())) // (len(sizes) - done))
    return shares


def _cleaned(task: PieceTask, bad: BadLines, read: Counter[str]) -> Iterator[Document]:
    cleaner = Cleaner(task.treatment.clean)
    items = read_piece(task.piece, field=task.treatment.field, language_field=task.treatment.language_field)
    for number, document in enumerate(bad.taken_from(items), 1):
        read[document.language] += 1
        outcome = cleaner.clean(document)
        if isinstance(outcome, Document):
            yield outcome
        if number % _TICK == 0:
            workers.tick(_TICK)
