"""The file formats that come in: documents, passages, queries, judgements; every complaint names `file:line`.

Readers are generators over plain or gzipped files, so nothing is held in memory that the caller does not keep, and a
bad line is an error rather than something skipped, because what is skipped in silence is missed in the results.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError, require

_NAME = re.compile(r"(?:(?:corpus|queries)\.)?([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.(jsonl|txt|tsv)(?:\.gz)?")
_CORPUS = re.compile(r"corpus(\..+)?\.jsonl(\.gz)?")
_LAYOUT = "corpus.<lang>.jsonl, <lang>.jsonl or <lang>.txt, each also .gz"
_QRELS_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Document:
    """One text to learn from. Documents of equal `article` are language versions of the same article."""

    id: str
    language: str
    text: str
    article: str | None


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


def language_of(path: Path) -> str:
    """The language a file's name states (`corpus.sw.jsonl.gz`, `sw.txt`), or "" where it states none."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match else ""


def document_files(path: Path | str) -> list[Path]:
    """The files of documents in a folder, by language and name, or the one file given."""
    path = Path(path)
    if path.is_file():
        if not language_of(path):
            raise DataError(f"{path}: its name states no language; expected {_LAYOUT}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected a folder of {_LAYOUT}")
    found = [file for file in path.iterdir() if language_of(file) and not file.name.startswith("queries.")]
    found = [file for file in found if file.is_file() and ".tsv" not in file.suffixes]
    if not found:
        raise DataError(f"{path}: no documents in it; expected {_LAYOUT}")
    return sorted(found, key=lambda file: (language_of(file), file.name))


def unread_files(path: Path | str) -> list[str]:
    """Names in a folder that `document_files` passes over, but for hidden ones, queries and Markdown."""
    path = Path(path)
    if not path.is_dir():
        return []
    read = {file.name for file in document_files(path)}
    known = re.compile(r"\..*|queries\..*|.*\.md")
    names = (file.name for file in path.iterdir() if file.is_file())
    return sorted(name for name in names if name not in read and not known.fullmatch(name))


def is_text(value: str) -> bool:
    """Whether the string is made of characters: half a surrogate pair (a byte that was no UTF-8) is none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_documents(path: Path | str, field: str = "text") -> Iterator[Document]:
    """All documents of a folder or file, in the order of the files' languages and names.

    A `.jsonl` line is `{"_id" or "id", "title"?, field, "article"?}`, other keys are not looked at. In a `.txt` file a
    line is a paragraph and a blank line ends a document.
    """
    for file in document_files(path):
        language = language_of(file)
        if ".txt" in file.suffixes:
            yield from _read_text(file, language)
        else:
            for line, row in read_objects(file):
                yield _document(row, language, field, f"{file}:{line}")


def read_hub(name: str, split: str, language: str, field: str = "text") -> Iterator[Document]:
    """Stream a Hugging Face dataset (`owner/name`, `owner/name:configuration`, or a local folder of its files)."""
    datasets = require("datasets", "train", "reading a Hugging Face dataset")
    name, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        for number, row in enumerate(datasets.load_dataset(name, configuration or None, split=split, streaming=True)):
            yield _document(row, language, field, f"{name}[{split}]:{number + 1}")
    except DataError:
        raise
    except Exception as error:  # every builder raises its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be read as a Hugging Face dataset, split {split!r}: {why}") from error


def read_passages(path: Path | str) -> Iterator[Passage]:
    """The passages of a file, or of every `corpus*.jsonl` of a folder: `{"_id", "title"?, "text", "language"?}`."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _CORPUS.fullmatch(file.name))
        if not files:
            raise DataError(f"{path}: no passages in it; expected corpus.<lang>.jsonl or corpus.jsonl, also .gz")
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder; expected passages as corpus.<lang>.jsonl")
    check = _unique("passage")
    for file in files:
        for line, row in read_objects(file):
            where = f"{file}:{line}"
            title, text = _text(row, "title", where, ""), _text(row, "text", where)
            if not (title.strip() or text.strip()):
                raise DataError(f"{where}: the passage has neither title nor text")
            language = _text(row, "language", where, "") or language_of(file)
            yield Passage(check(_id(row, where), where), title, text, language)
        if not file.stat().st_size:
            raise DataError(f"{file}: empty; expected one passage a line")


def read_queries(path: Path | str) -> list[Query]:
    """The queries of a file: `{"_id", "text"}`."""
    file = _existing(path, "queries.<lang>.jsonl")
    queries, check = [], _unique("query")
    for line, row in read_objects(file):
        where = f"{file}:{line}"
        queries.append(Query(check(_id(row, where), where), _filled(row, "text", where), language_of(file)))
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


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a plain or gzipped UTF-8 file, without their line ends; other bytes are an error."""
    line = 0
    with _open(file) as stream:
        try:
            for line, raw in enumerate(stream, 1):
                yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{file}:{line}: not UTF-8 (byte 0x{byte:02x} at position {error.start}); convert the file to UTF-8"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file}:{line + 1}: the gzip file is damaged or cut short; copy it again") from error


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects of a file with one a line; blank lines are passed over."""
    for line, text in read_lines(file):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{file}:{line}: not JSON ({error}); expected one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{line}: expected a JSON object, got {type(row).__name__}")
        yield line, row


def _open(file: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _existing(path: Path | str, expected: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    return path


def _read_text(file: Path, language: str) -> Iterator[Document]:
    paragraphs: list[str] = []
    first = 0
    for line, text in read_lines(file):
        if text.strip():
            first = first if paragraphs else line
            paragraphs.append(text)
        elif paragraphs:
            yield Document(f"{file.name}:{first}", language, "\n".join(paragraphs), None)
            paragraphs = []
    if paragraphs:
        yield Document(f"{file.name}:{first}", language, "\n".join(paragraphs), None)


def _document(row: dict[str, Any], language: str, field: str, where: str) -> Document:
    text = _filled(row, field, where)
    title = _text(row, "title", where, "").strip() if field != "title" else ""
    article = row.get("article")
    if article is not None and not isinstance(article, str | int):
        raise DataError(f"{where}: 'article' must be text, got {type(article).__name__}")
    has_id = row.get("_id", row.get("id")) is not None
    return Document(
        _id(row, where) if has_id else where,
        language,
        f"{title}\n{text}" if title else text,
        None if article is None else str(article),
    )


def _id(row: dict[str, Any], where: str) -> str:
    value = row.get("_id", row.get("id"))
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: expected an '_id' (text), got {value!r}")
    return str(value)


def _text(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        keys = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: expected text under {key!r}, got {value!r}; keys on this line: {keys}")
    if not is_text(value):
        raise DataError(f"{where}: {key!r} holds half a surrogate pair, which is no character")
    return value


def _filled(row: dict[str, Any], key: str, where: str) -> str:
    text = _text(row, key, where)
    if not text.strip():
        raise DataError(f"{where}: {key!r} is empty")
    return text


def _unique(what: str) -> Callable[[str, str], str]:
    seen: set[str] = set()

    def check(name: str, where: str) -> str:
        if name in seen:
            raise DataError(f"{where}: the {what} id {name!r} occurs already above or in a file before this one")
        seen.add(name)
        return name

    return check
