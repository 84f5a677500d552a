"""Passages to be found, from the layouts that corpora come in, in blocks of so many lines.

A block is the unit that embedding resumes by: its lines are kept as they were read, so that one hash tells whether it
was embedded before, and one that was costs no parsing. Every file, whatever its layout, becomes numbered lines of
bytes here; what a line says is looked at only when its passages are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import kind_of, language_of
from .formats import Passage, unique
from .parquet import column_names, parquet_count, parquet_rows
from .readers import BadLine
from .rows import id_of, parse_object, text_of
from .streams import STDIN, BadText, damage_located, decode, open_stream, raw_lines

LAYOUT = ".jsonl, .tsv (also as .gz, .zst or .xz) or .parquet"
BLOCK_LINES = 32768
BLOCK_BYTES = 64 * 2**20  # a block of very long lines ends before it has its number of lines

_IDS = ("_id", "docid", "id", "pid")
_TEXTS = ("text", "contents", "passage")
_KEYS = {*_IDS, *_TEXTS, "title", "language"}
_TSV = re.compile(r".*\.tsv(\.(gz|zst|xz))?")
_NAMED = re.compile(r"(corpus|docs|documents|passages|collection|psgs)([._-].*)?")
_NOT_PASSAGES = re.compile(r"\..*|(queries|topics?|qrels)([._-].*)?|.*\.md")
# a cell that csv has put in quotes, where a quote inside is written twice; or one without
_CELL = re.compile(r'(?:"((?:[^"]++|"")*+)"|((?!")[^\t]*+))(\t|\Z)')
_SAMPLED = 32 * 2**20  # bytes from which the number of lines is estimated


@dataclass(frozen=True)
class Block:
    """Consecutive lines of one file, the first of them `first_line`; `columns` are a .tsv file's, if it states them."""

    file: Path
    name: str
    kind: str
    language: str
    columns: tuple[str, ...]
    first_line: int
    lines: tuple[bytes, ...]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that decides the block's passages and the place its complaints name, but the folder."""
        facts = [self.name, self.kind, self.language, self.columns, self.first_line]
        digest = hashlib.sha256(json.dumps(facts).encode() + b"\n")
        for raw in self.lines:
            digest.update(raw)
        return digest.hexdigest()

    @functools.cached_property
    def items(self) -> list[tuple[int, Passage | BadLine]]:
        """All `passages`, for another thread to make them before they are needed."""
        return list(self.passages())

    def passages(self) -> Iterator[tuple[int, Passage | BadLine]]:
        """Line numbers with the passage, or with what is wrong; blank lines are passed over."""
        for line, raw in enumerate(self.lines, self.first_line):
            try:
                text = decode(line, raw)
                if text.strip():
                    row = parse_object(text) if self.kind != "tsv" else _tsv_row(text, self.columns)
                    yield line, _passage(row, self.language)
            except BadText as error:
                yield line, BadLine(f"{self.name}:{line}", str(error), error.lacks)


def passage_files(path: Path | str) -> list[Path]:
    """The files of passages that a path means: itself, `-` for standard input, or those that a folder has of them."""
    if str(path) == "-":
        return [STDIN]
    path = Path(path)
    if path.is_file():
        if not _kind(path):
            raise DataError(f"{path}: not a kind of file that passages are read from; expected {LAYOUT}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected passages as corpus.<lang>.jsonl, or {LAYOUT}")
    found = sorted(file for file in path.iterdir() if _holds_passages(file))
    if not found:
        raise DataError(f"{path}: no passages in it; expected corpus, docs, passages, collection or psgs as {LAYOUT}")
    return found


def unread_files(path: Path | str) -> list[str]:
    """Names of files in a folder that are passed over, but for hidden ones, queries, judgements and Markdown."""
    if str(path) == "-" or not Path(path).is_dir():
        return []
    files = (file for file in Path(path).iterdir() if file.is_file())
    return sorted(file.name for file in files if not _holds_passages(file) and not _NOT_PASSAGES.fullmatch(file.name))


def read_blocks(path: Path | str, *, language: str = "", lines: int = BLOCK_LINES) -> Iterator[Block]:
    """All lines of a path, by file name and place; `language` is for what neither its line nor its file states."""
    for file in passage_files(path):
        kind, numbered = _numbered(file)
        code, name = language_of(file) or language, "stdin" if file == STDIN else file.name
        columns: tuple[str, ...] = ()
        kept: list[bytes] = []
        line = size = 0
        for line, raw in numbered:
            if line == 1 and kind == "tsv" and (columns := _stated_columns(raw)):
                continue
            kept.append(raw)
            size += len(raw)
            if len(kept) == lines or size >= BLOCK_BYTES:
                yield Block(file, name, kind, code, columns, line - len(kept) + 1, tuple(kept))
                kept, size = [], 0
        if kept:
            yield Block(file, name, kind, code, columns, line - len(kept) + 1, tuple(kept))
        if not line:
            raise DataError(f"{file}: empty; expected one passage a line")


def read_passages(path: Path | str) -> Iterator[Passage]:
    """The passages of a file or folder, for what reads all of them: a bad line, or an id seen before, is an error."""
    check = unique("passage")
    for block in read_blocks(path):
        for line, item in block.passages():
            problem = item.problem if isinstance(item, BadLine) else _complaint(check, item.id)
            if problem or isinstance(item, BadLine):
                raise DataError(f"{block.file}:{line}: {problem}")
            yield item


def estimate_lines(files: Iterable[Path]) -> tuple[int, bool] | None:
    """About how many lines there are, and whether that is exact; None for standard input."""
    lines = read = left = 0  # of what was looked at: lines and bytes on disk; bytes of what was not
    rows, budget, exact = 0, _SAMPLED, True
    for file in files:
        if file == STDIN:
            return None
        if _kind(file) == "parquet":
            rows += parquet_count(file)
            continue
        size = file.stat().st_size
        with file.open("rb", buffering=0) as disk, open_stream(file, disk) as stream, damage_located(file, 1):
            while budget > 0 and (part := stream.read(2**20)):
                lines, budget = lines + part.count(b"\n"), budget - len(part)
            seen = disk.tell() if budget <= 0 else size
        read, left, exact = read + seen, left + size - seen, exact and seen == size
    return rows + lines + (round(left * lines / read) if read else 0), exact


def _holds_passages(file: Path) -> bool:
    if not file.is_file() or _NOT_PASSAGES.fullmatch(file.name):
        return False
    # downloads name their .parquet files by what part of the whole they are
    return _kind(file) == "parquet" or bool(_kind(file) and _NAMED.fullmatch(file.name))


def _kind(file: Path) -> str:
    kind = "tsv" if _TSV.fullmatch(file.name) else kind_of(file)
    return kind if kind != "txt" else ""


def _numbered(file: Path) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """The kind of a file and its numbered lines; a row of Parquet is written as a line of JSON."""
    if file == STDIN:
        lines = raw_lines(file)
        first = next(lines, (0, b""))
        kind = "jsonl" if first[1].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "tsv"
        return kind, _put_back(first, lines)
    kind = _kind(file)
    if kind != "parquet":
        return kind, raw_lines(file)
    names = column_names(file)
    if not (set(names) & set(_IDS) and set(names) & set(_TEXTS)):
        wanted = f"one of {', '.join(_IDS)} and one of {', '.join(_TEXTS)}"
        raise DataError(f"{file}: expected columns {wanted}; its columns: {', '.join(names)}")
    rows = parquet_rows(file, 0, None, 1, _KEYS)
    return kind, ((number, json.dumps(row, ensure_ascii=False, default=_foreign).encode()) for number, row in rows)


def _put_back(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    if first[0]:
        yield first
    yield from rest


def _foreign(value: object) -> list[str]:
    """What JSON has no word for, as something that no one takes for a text."""
    return [type(value).__name__]


def _stated_columns(raw: bytes) -> tuple[str, ...]:
    """The columns that a .tsv file's first line names; none where it is a passage already."""
    try:
        cells = tuple(cell.strip().lower() for cell in decode(1, raw).split("\t"))
    except BadText:
        return ()
    return cells if set(cells) & set(_IDS) and set(cells) & set(_TEXTS) else ()


def _tsv_row(text: str, columns: tuple[str, ...]) -> dict[str, Any]:
    """A line by its columns, with quotes as csv writes them; without columns it is id and text, all of it literal."""
    cells = _cells(text) if columns else text.split("\t")
    names = columns or ("id", "text")
    if len(cells) != len(names):
        header = "" if columns else " (a first line may name other columns, such as id, text, title)"
        raise BadText(f"expected {len(names)} cells, {', '.join(names)}, got {len(cells)}{header}")
    return dict(zip(names, cells, strict=True))


def _cells(text: str) -> list[str]:
    if '"' not in text:
        return text.split("\t")
    cells: list[str] = []
    place, more = 0, True
    while more:
        match = _CELL.match(text, place)
        if not match:
            raise BadText(f"cell {len(cells) + 1} begins with a quote that is not closed before the next tab")
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        place, more = match.end(), match[3] == "\t"
    return cells


def _passage(row: dict[str, Any], language: str) -> Passage:
    name = id_of(row, _IDS)
    title = text_of(row, "title", "")
    key = next((key for key in _TEXTS if key in row), "text")
    text = text_of(row, key)
    if key == "contents" and not title:  # as Anserini's collections have it: title, a blank line, text
        first, separator, rest = text.partition("\n\n")
        title, text = (first, rest) if separator and "\n" not in first else ("", text)
    if not (title.strip() or text.strip()):
        raise BadText("the passage has neither title nor text")
    return Passage(name, title, text, text_of(row, "language", "") or language)


def _complaint(check: Callable[[str], str], name: str) -> str:
    try:
        check(name)
    except BadText as error:
        return str(error)
    return ""
