"""Where `prepare` reads from: files in a folder, or a Hugging Face dataset, which becomes files first.

A name on the hub says nothing of what lies there today, so its text is fetched once and then is read as any other:
several times, in pieces, by several processes. What was read is known by a hash, so that an output made from the same
text before can be told from any other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import workers
from ..artifact import open_artifact, sha256, writing
from ..errors import DataError
from ..progress import track
from .files import language_files, unread_files
from .formats import Document
from .prepare_settings import PrepareSettings
from .readers import Layout, Piece, pieces, stream_hub
from .report import BAD_LINES, BadLines

FETCHED = "fetched text"
_FILE_CHARACTERS = 2**26  # of fetched text in a file
_FORMAT = 2  # of fetched text; a new one fetches anew


@dataclass(frozen=True)
class Text:
    """Text to be read: its `files` with their languages ("" where the rows state theirs), and how to read them.

    `where` is what errors call it; `facts` and `bad_lines` tell of rows that never became lines of a file.
    """

    where: str
    files: list[tuple[str, Path]]
    field: str
    language_field: str
    names: list[str]
    facts: Mapping[str, Any]
    bad_lines: Path | None

    def pieces(self, layout: Layout, target_bytes: int) -> list[Piece]:
        """What is read by itself, in order."""
        found = []
        for language, file in self.files:
            found += pieces(
                file,
                language_field=self.language_field,
                language=language,
                layout=layout,
                target_bytes=target_bytes,
            )
        return found


def find_text(settings: PrepareSettings, work: Path) -> Text:
    """The files that the settings name; a dataset is fetched into the folder `work`, unless it lies there."""
    if settings.dataset:
        return _fetched(settings, work)
    given = {"language": settings.language, "language_field": settings.language_field}
    files = language_files(settings.corpus, **given)
    if passed_over := unread_files(settings.corpus, **given):
        sys.stderr.write(f"{settings.corpus}: not read, as no name states their language: {', '.join(passed_over)}\n")
    root = Path(settings.corpus)
    names = [(file.relative_to(root) if root.is_dir() else Path(file.name)).as_posix() for _, file in files]
    none = {"read": {}, "bad": 0, "first_bad": []}
    return Text(settings.corpus, files, settings.field, settings.language_field, names, none, None)


def content_of(file: Path) -> str:
    """What tells a file from any other."""
    return sha256(file)


def _fetched(settings: PrepareSettings, work: Path) -> Text:
    split = settings.split or "train"
    where = f"{settings.dataset}[{split}]"
    given = (settings.language, settings.field, settings.language_field)
    asked = [_FORMAT, settings.dataset, split, *given, bool(settings.bad_lines)]
    folder = work / f"fetched-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"
    if workers.finished(folder, FETCHED) is None:
        rows = stream_hub(settings.dataset, split, *given[:2], language_field=settings.language_field)
        with writing(folder, FETCHED) as draft:
            bad = BadLines(draft.folder / BAD_LINES, strict=not settings.bad_lines)
            lines = track(map(_line, bad.taken_from(rows)), f"Fetching {where}", "documents")
            for number in itertools.count():
                if not _write_some(draft.folder / f"{number:06}.jsonl", lines):
                    break
            if not number:
                raise DataError(f"{where}: there is no document in it")
            draft.meta |= {"read": {}, "bad": bad.count, "first_bad": bad.first}
    else:
        sys.stderr.write(f"{where}: read as it was fetched before; to fetch it anew, remove {folder}\n")
    artifact = open_artifact(folder, FETCHED, verify=False)
    names = [name for name in sorted(artifact.files) if name != BAD_LINES]
    files = [("", artifact.file(name)) for name in names]
    bad_lines = folder / BAD_LINES if artifact.meta["bad"] else None
    return Text(where, files, "text", "language", names, artifact.meta, bad_lines)


def _write_some(file: Path, lines: Iterator[str]) -> bool:
    """One file's worth; False, and no file, if there is no more."""
    first = next(lines, None)
    if first is None:
        return False
    with file.open("w", encoding="utf-8") as stream:
        size = stream.write(first)
        while size < _FILE_CHARACTERS and (line := next(lines, None)) is not None:
            size += stream.write(line)
    return True


def _line(document: Document) -> str:
    text = document.text.removeprefix(f"{document.title}\n") if document.title else document.text
    row: dict[str, Any] = {"_id": document.id, "language": document.language, "title": document.title, "text": text}
    if document.article is not None:
        row["article"] = document.article
    return json.dumps(row, ensure_ascii=False) + "\n"
