"""Documents from a crawl's files, in pieces that can be read side by side.

A crawl is one file of a terabyte as often as ten thousand small ones, so the unit of work is a `Piece`: some bytes of a
plain file, some row groups of a Parquet file, or a compressed file whole. Pieces begin where documents begin, so that
reading all of them gives exactly the documents, and the `file:line` of every complaint, that reading the file in one go
gives. A line that is no document comes out as a `BadLine`: whoever reads decides when there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..errors import DataError, require
from . import streams
from .files import is_language_code, kind_of, language_files
from .formats import Document
from .parquet import column_names, parquet_pieces, parquet_rows
from .rows import filled, id_of, keys_of, parse_object, shown, text_of
from .streams import BadText, check_begins, decode, is_compressed, next_line, open_stream, raw_lines

Layout = Literal["cc100", "lines"]

_MIB = 2**20
_ENOUGH = 10_000  # rows from which on what all lack will not come


@dataclass(frozen=True)
class Piece:
    """A part of one file that is read by itself: bytes, or the row groups of a Parquet file; `stop` None: to the end.

    An empty `language` leaves it to each row. `layout` is how `.txt` files are laid out: "cc100", one paragraph a line
    and a blank line after every document, or "lines", one document a line. `first_line` counts from 1; in a Parquet
    file it is the number of a row.
    """

    file: Path
    start: int
    stop: int | None
    language: str
    layout: Layout = "cc100"
    first_line: int = 1


@dataclass(frozen=True)
class BadLine:
    """A line, or a row, that gave no document: `where` is `file:line`, `lacks` a key asked for that the row has not."""

    where: str
    problem: str
    lacks: str = field(default="", compare=False)


def pieces(
    path: Path | str,
    *,
    language_field: str = "",
    language: str = "",
    layout: Layout = "cc100",
    target_bytes: int = 64 * _MIB,
) -> list[Piece]:
    """What there is to read in a folder or file: by language, then name, then place; an empty file is an error.

    Plain files of more than `target_bytes` are read once, to count the lines before each cut.
    """
    found: list[Piece] = []
    for stated, file in language_files(path, language_field=language_field, language=language):
        if language_field and kind_of(file) == "txt":
            raise DataError(f"{file}: text has no field {language_field!r}; expected .jsonl or .parquet")
        cuts = parquet_pieces(file, target_bytes) if kind_of(file) == "parquet" else _cuts(file, layout, target_bytes)
        found += [Piece(file, start, stop, stated, layout, line) for start, stop, line in cuts]
    return found


def read_piece(piece: Piece, *, field: str = "text", language_field: str = "") -> Iterator[Document | BadLine]:
    """The documents whose first line lies in the piece, and the lines that give none, in their order.

    A row of `.jsonl` or Parquet is `{"_id" or "id"?, "title"?, field, "article"?, language_field?}`; other keys are
    not looked at. `language_field` may reach inside: `metadata.identification.label`.
    """
    if kind_of(piece.file) == "txt":
        items = _text_documents(piece) if piece.layout == "cc100" else _lines_documents(piece)
    else:
        items = _row_documents(piece, field, language_field)
        if piece.start == 0:
            items = _not_all_lacking(items, str(piece.file))
    nothing = True
    for item in items:
        nothing = False
        yield item
    if nothing and piece.start == 0 and piece.stop is None:
        raise DataError(f"{piece.file}: no document in it, only blank lines")


def stream_hub(
    name: str, split: str, language: str, field: str = "text", *, language_field: str = ""
) -> Iterator[Document | BadLine]:
    """Stream a Hugging Face dataset (`owner/name`, `owner/name:configuration`, or a local folder of its files)."""
    return _not_all_lacking(_stream(name, split, language, field, language_field), f"{name}[{split}]")


def _stream(name: str, split: str, language: str, field: str, language_field: str) -> Iterator[Document | BadLine]:
    datasets = require("datasets", "corpus", "reading a Hugging Face dataset")
    name, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        for number, row in enumerate(datasets.load_dataset(name, configuration or None, split=split, streaming=True)):
            where = f"{name}[{split}]:{number + 1}"
            try:
                yield _document(row, language, field, language_field, where)
            except BadText as error:
                yield BadLine(where, str(error), error.lacks)
    except DataError:
        raise
    except Exception as error:  # every builder raises its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be read as a Hugging Face dataset, split {split!r}: {why}") from error


def _not_all_lacking(items: Iterator[Document | BadLine], where: str) -> Iterator[Document | BadLine]:
    """Complain once all rows, or the first `_ENOUGH`, lack the same key: then its name is wrong, not they."""
    first, count = None, 0
    for item in items:
        yield item
        if isinstance(item, Document) or not item.lacks or (first and first.lacks != item.lacks):
            yield from items
            return
        first, count = first or item, count + 1
        if count == _ENOUGH:
            break
    if first:
        which = f"so with all {count:,} rows read of {where}; name another key with --field or --language_field"
        raise DataError(f"{first.where}: {first.problem}; {which}")


def _cuts(file: Path, layout: Layout, target_bytes: int) -> Iterator[tuple[int, int | None, int]]:
    """Start, stop and first line of the pieces of a file of lines."""
    start, line = 0, 1
    check_begins(file)
    with open_stream(file) as stream:
        size = 0 if is_compressed(file) else file.stat().st_size
        while start + target_bytes < size:
            stream.seek(start + target_bytes)
            next_line(stream)  # the rest of the line that the place lies in
            if layout == "cc100" and kind_of(file) == "txt":
                _pass_blank(stream)
            stop = stream.tell()
            if stop >= size:
                break
            yield start, stop, line
            stream.seek(start)
            line += _line_ends(stream, stop - start)
            start = stop
    yield start, None, line


def _pass_blank(stream: BinaryIO) -> None:
    """Go on to the line after the next blank one, where a document of CC-100 may begin."""
    while raw := next_line(stream)[0]:
        try:
            if not decode(0, raw).strip():
                return
        except BadText:  # a line with something in it
            continue


def _line_ends(stream: BinaryIO, size: int) -> int:
    count = 0
    while size and (block := stream.read(min(size, _MIB))):
        count += block.count(b"\n")
        size -= len(block)
    return count


def _text_documents(piece: Piece) -> Iterator[Document | BadLine]:
    """Paragraphs up to a blank line; a document with a bad line in it is left out whole."""
    paragraphs: list[str] = []
    first = size = 0
    bad = False
    for line, raw in raw_lines(piece.file, piece.start, piece.stop, piece.first_line):
        try:
            text = decode(line, raw)
            if not text.strip():
                if paragraphs:
                    yield Document(f"{piece.file.name}:{first}", piece.language, "\n".join(paragraphs), None)
                paragraphs, size, bad = [], 0, False
                continue
            size += len(raw)
            if size > streams.LONGEST:
                limit = streams.LONGEST // _MIB
                raise BadText(f"a document of more than {limit} MiB; expected a blank line after each, or layout lines")
        except BadText as error:
            if not bad:
                yield BadLine(f"{piece.file}:{line}", str(error))
            paragraphs, bad = [], True
        if not bad:
            first = first if paragraphs else line
            paragraphs.append(text)
    if paragraphs:
        yield Document(f"{piece.file.name}:{first}", piece.language, "\n".join(paragraphs), None)


def _lines_documents(piece: Piece) -> Iterator[Document | BadLine]:
    for line, raw in raw_lines(piece.file, piece.start, piece.stop, piece.first_line):
        try:
            text = decode(line, raw)
        except BadText as error:
            yield BadLine(f"{piece.file}:{line}", str(error))
            continue
        if text.strip():
            yield Document(f"{piece.file.name}:{line}", piece.language, text, None)


def _row_documents(piece: Piece, field: str, language_field: str) -> Iterator[Document | BadLine]:
    for line, row in _rows(piece, field, language_field):
        where = f"{piece.file}:{line}"
        try:
            if isinstance(row, bytes):
                text = decode(line, row)
                if not text.strip():
                    continue
                row = parse_object(text)
            yield _document(row, piece.language, field, language_field, where)
        except BadText as error:
            yield BadLine(where, str(error), error.lacks)


def _rows(piece: Piece, field: str, language_field: str) -> Iterator[tuple[int, Any]]:
    if kind_of(piece.file) != "parquet":
        return raw_lines(piece.file, piece.start, piece.stop, piece.first_line)
    names = column_names(piece.file)
    outer = language_field if language_field in names else language_field.partition(".")[0]
    for key in (field, outer):
        if key and key not in names:
            raise DataError(f"{piece.file}: no column {key!r}; its columns: {', '.join(names)}")
    keys = {"_id", "id", "title", "article", field, language_field, language_field.partition(".")[0]}
    return parquet_rows(piece.file, piece.start, piece.stop, piece.first_line, keys)


def _document(row: dict[str, Any], language: str, field: str, language_field: str, where: str) -> Document:
    text = filled(row, field)
    title = text_of(row, "title", "").strip() if field != "title" else ""
    article = row.get("article")
    if article is not None and not isinstance(article, str | int):
        raise BadText(f"'article' must be text, got {type(article).__name__}")
    has_id = row.get("_id", row.get("id")) is not None
    return Document(
        id_of(row) if has_id else where,
        _language_in(row, language_field) if language_field else language,
        f"{title}\n{text}" if title else text,
        None if article is None else str(article),
        title,
    )


def _language_in(row: dict[str, Any], field: str) -> str:
    value: Any = row
    for key in [field] if field in row else field.split("."):
        there = isinstance(value, dict) and key in value
        value = value[key] if there else None
    if not isinstance(value, str) or not is_language_code(value):
        problem = f"expected a language code such as sw under {field!r}, got {shown(value)}"
        if not there:
            raise BadText(f"{problem}; keys on this line: {keys_of(row)}", field)
        raise BadText(problem)
    return value
