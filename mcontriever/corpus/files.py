"""Which files of a folder hold documents, and in which language: stated by the caller, the folders or the names.

A language that two of them state differently is an error, and what is not read is known by name, because a file passed
over in silence is missed only when a language turns out small.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

# CCNet (sw_head.json.gz), mC4 (c4-sw.tfrecord-00000-of-00001.json.gz) and OSCAR (sw_part_1.jsonl.zst, sw_meta.jsonl)
# add to the language what is not of it; CC-100's own zh-Hans and hi_rom are of it.
_CODE = r"[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*"
_PART = (
    r"(?:[-_.](?:head|middle|tail|all|meta|train|validation|test|tfrecord))*(?:[-_.](?:part[-_.]?)?\d+(?:-of-\d+)?)?"
)
_COMPRESSED = r"(?:\.(?:gz|zst|xz))"
_NAME = re.compile(
    rf"(?:(?:corpus|queries)\.|c4-)?({_CODE}?){_PART}\.(?:(?:jsonl|txt|tsv){_COMPRESSED}?|json{_COMPRESSED}|parquet)"
)
_FOLDER = re.compile(rf"({_CODE}?){_PART}")
_KIND = re.compile(rf".*\.(?:(?P<lines>jsonl|txt){_COMPRESSED}?|(?P<json>json){_COMPRESSED}|parquet)")
_KNOWN = re.compile(r"\..*|queries\..*|.*\.md")
LAYOUT = "<lang>.jsonl, .txt or .parquet, or such files in a folder <lang>; .jsonl and .txt also as .gz, .zst or .xz"


def is_language_code(text: str) -> bool:
    """Whether this is the form of a language's code: `sw`, `zh-Hant`, `swh_Latn`."""
    return re.fullmatch(_CODE, text) is not None


def language_of(path: Path) -> str:
    """The language a file's name states (`corpus.sw.jsonl.gz`, `sw_head.json.gz`), or "" where it states none."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match else ""


def kind_of(file: Path) -> str:
    """`jsonl`, `txt` or `parquet` by the file's name, or "" for what is none of them."""
    match = _KIND.fullmatch(file.name)
    if not match:
        return ""
    return match["lines"] or ("jsonl" if match["json"] else "parquet")


def language_files(path: Path | str, *, language_field: str = "", language: str = "") -> list[tuple[str, Path]]:
    """Files of documents and their languages, by language and name; "" where the rows state theirs.

    Without `language_field` and `language` a file's language is that of the nearest folder within `path` named by a
    code, or the one its name states.
    """
    path = Path(path)
    stated = bool(language_field or language)
    if path.is_file():
        if not kind_of(path):
            raise DataError(f"{path}: not a kind of file that is read; expected {LAYOUT}")
        code = "" if language_field else language or language_of(path)
        if not (code or language_field):
            raise DataError(f"{path}: its name states no language; expected {LAYOUT}, or a language given")
        return [(code, path)]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected a folder of {LAYOUT}")
    found = []
    for file in _walk(path):
        if not kind_of(file) or file.name.startswith("queries."):
            continue
        code = ("" if language_field else language) if stated else _language_within(path, file)
        if code or language_field:
            found.append((code, file))
    if not found:
        raise DataError(f"{path}: no documents in it; expected {LAYOUT}")
    return sorted(found, key=lambda each: (each[0], each[1].relative_to(path).parts))


def unread_files(path: Path | str, *, language_field: str = "", language: str = "") -> list[str]:
    """Names within a folder that are passed over, but for hidden ones, queries, judgements and Markdown."""
    path = Path(path)
    if not path.is_dir():
        return []
    read = {file for _, file in language_files(path, language_field=language_field, language=language)}
    passed_over = (file for file in _walk(path) if file not in read and not _KNOWN.fullmatch(file.name))
    return sorted(str(file.relative_to(path)) for file in passed_over if "qrels" not in file.relative_to(path).parts)


def _language_within(path: Path, file: Path) -> str:
    named = language_of(file)
    folders = [match[1] for part in file.relative_to(path).parts[:-1] if (match := _FOLDER.fullmatch(part))]
    if folders and named and folders[-1] != named:
        raise DataError(
            f"{file}: its folder says its language is {folders[-1]!r}, its name says {named!r}; rename one of them, "
            "or give the language or the field that holds it"
        )
    return folders[-1] if folders else named


def _walk(path: Path) -> Iterator[Path]:
    seen = set()
    for folder, inner, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links that lead in a circle
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names))
