"""What went into the shards and what did not, and why: for the terminal, the manifest and `report.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .formats import Document
from .readers import BadLine

BAD_LINES = "bad-lines.jsonl"
REPORT = "report.json"
_FIRST = 5  # bad lines told on the terminal
_ENOUGH = 10_000  # lines from which on a share of them says something before all are read
# Written without spaces, so that their "words" are sentences and tokens per word says nothing.
_NO_SPACES = {"ja", "zh", "th", "km", "lo", "my", "yue", "wuu", "bo", "dz"}


@dataclass
class LanguageReport:
    """What happened to one language's text; tokens, words and characters are those kept."""

    read: int = 0
    documents: int = 0
    tokens: int = 0
    words: int = 0
    characters: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    near_uncompared: int = 0
    """kept, but so many share a stretch with it that it was not compared with all of them"""
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, found: Mapping[str, int]) -> None:
        """What joining the language's pieces found."""
        for name, count in found.items():
            setattr(self, name, count)


class BadLines:
    """Bad lines on their way past: counted, written down, and the first of them kept to be told."""

    def __init__(self, file: Path | None, *, strict: bool, folder: Path | str = "") -> None:
        self.count, self._file, self._strict, self._folder = 0, file, strict, folder
        self.first: list[list[str]] = []

    def taken_from(self, items: Iterable[Document | BadLine]) -> Iterator[Document]:
        """The documents among the items; if `strict`, a bad line is an error."""
        for item in items:
            if isinstance(item, Document):
                yield item
            else:
                self.take(item)

    def take(self, item: BadLine) -> None:
        """One of them; `folder` is where its file lies, if it does not say."""
        if self._strict:
            where = Path(self._folder, item.where)
            raise DataError(f"{where}: {item.problem}; mend it, or allow some such lines with --bad_lines")
        self.count += 1
        if self.count <= _FIRST:
            self.first.append([item.where, item.problem])
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"where": item.where, "problem": item.problem}) + "\n")


class Tally:
    """Adds up what the pieces say of themselves, and stops when too many lines are bad."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.bad = self.read = 0
        self.first: list[list[str]] = []

    def add(self, facts: Mapping[str, Any]) -> None:
        """One piece more, in any order."""
        self.bad += facts["bad"]
        self.read += sum(facts["read"].values()) + facts["bad"]
        self.first = (self.first + facts["first_bad"])[:_FIRST]
        if self._limit >= 1 or self.read >= _ENOUGH or not self._limit:
            self.check()

    def check(self) -> None:
        """Complain if it is too many of those read so far."""
        if self.bad > (self._limit if self._limit >= 1 else self._limit * self.read):
            where, problem = self.first[0]
            raise DataError(
                f"{self.bad:,} of {self.read:,} lines are bad, --bad_lines allows {self._limit:g}; "
                f"one of them {where}: {problem}"
            )


def languages_of(pieces: Iterable[Mapping[str, Any]]) -> dict[str, LanguageReport]:
    """What was read and dropped before duplicates were looked for, by language."""
    reports: dict[str, LanguageReport] = {}
    for facts in pieces:
        for language, count in facts["read"].items():
            report = reports.setdefault(language, LanguageReport())
            report.read += count
            report.dropped = dict(Counter(report.dropped) + Counter(facts["dropped"].get(language, {})))
    return dict(sorted(reports.items()))


def told(reports: Mapping[str, LanguageReport], pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As JSON, with the rates that are asked for and the first bad lines in the order of the text."""
    languages = {language: asdict(report) | dict(_rates(language, report)) for language, report in reports.items()}
    bad = sum(facts["bad"] for facts in pieces)
    of = bad + sum(report.read for report in reports.values())
    first = [line for facts in pieces for line in facts["first_bad"]][:_FIRST]
    return {"report": languages, "bad_lines": {"count": bad, "of": of, "first": first}}


def table(reports: Mapping[str, LanguageReport]) -> str:
    """For the terminal: a language a line."""
    reasons = sorted({reason for report in reports.values() for reason in report.dropped})
    head = ["", "documents", "tokens", "tokens/word", "chars/token", "exact dup.", "near dup."]
    lines = [[*head, *(reason.replace("_", " ") for reason in reasons)]]
    for language, report in reports.items():
        rates = dict(_rates(language, report))
        per = [f"{rates[name]:.2f}" if name in rates else "-" for name in ("tokens_per_word", "characters_per_token")]
        counts = [report.exact_duplicates, report.near_duplicates, *(report.dropped.get(each, 0) for each in reasons)]
        amounts = [f"{report.documents:,}", f"{report.tokens:,}"]
        lines.append([language, *amounts, *per, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def in_words(reports: Mapping[str, LanguageReport], bad: Mapping[str, Any]) -> list[str]:
    """The table, and lines for what would be missed in it."""
    lines = [table(reports)]
    if bad["count"]:
        lines.append(f"{bad['count']:,} bad lines of {bad['of']:,} were left out, all in {BAD_LINES}; the first:")
        lines += [f"  {where}: {problem}" for where, problem in bad["first"]]
    for language, report in reports.items():
        if report.near_uncompared:
            lines.append(
                f"{language}: {report.near_uncompared:,} documents share a stretch with so many others that they were "
                "not compared with all of them; some near-duplicates may have stayed"
            )
    return lines


def read_back(meta: Mapping[str, Any]) -> list[str]:
    """`in_words` of what `told` told."""
    names = LanguageReport.__dataclass_fields__
    reports = {
        language: LanguageReport(**{name: value for name, value in facts.items() if name in names})
        for language, facts in meta["report"].items()
    }
    return in_words(reports, meta.get("bad_lines", {"count": 0}))


def _rates(language: str, report: LanguageReport) -> Iterator[tuple[str, float]]:
    if report.words and language.replace("_", "-").partition("-")[0] not in _NO_SPACES:
        yield "tokens_per_word", round(report.tokens / report.words, 4)
    if report.tokens and report.characters:
        yield "characters_per_token", round(report.characters / report.tokens, 4)
