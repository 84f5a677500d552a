"""The input cut into pieces, the folder where what is done lies, and who does it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from .. import workers
from ..artifact import MANIFEST
from ..errors import ArtifactError
from ..progress import bar
from .encode import PieceTask, Treatment
from .prepare_settings import PrepareSettings
from .sources import Text, content_of

T = TypeVar("T")
R = TypeVar("R")

PIECE_BYTES = 64 * 2**20
_SMALL = 8 * 2**20  # bytes of input for which starting processes takes longer than the work
_LOCK = "prepare.lock"


class Job:
    """What is to be done with a text, in the folder `work`."""

    def __init__(self, settings: PrepareSettings, text: Text, work: Path) -> None:
        self.settings, self.text, self.work = settings, text, work
        files = [file for _, file in text.files]
        small = sum(file.stat().st_size for file in files) < _SMALL
        self._workers = settings.workers or (1 if small else workers.cores())
        self.contents = self.run(content_of, files, "Reading", "files", str)

    def pieces(self, treatment: Treatment) -> list[PieceTask]:
        """All of them, in order."""
        contents = dict(zip((file for _, file in self.text.files), self.contents, strict=True))
        strict, folder = not self.settings.bad_lines, str(self.work)
        return [
            PieceTask(piece=piece, treatment=treatment, content=contents[piece.file], folder=folder, strict=strict)
            for piece in self.text.pieces(self.settings.layout, PIECE_BYTES)
        ]

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        title: str,
        unit: str,
        label: Callable[[T], str],
        notice: Callable[[R], None] = lambda result: None,
    ) -> list[R]:
        """`workers.run` under a bar; `notice` sees each result as soon as it is there."""
        documents = 0
        with bar(title, len(tasks), unit) as running:

            def progress(count: int, result: R | None) -> None:
                nonlocal documents
                documents += count
                if result is not None:
                    notice(result)
                told = {"documents": f"{documents:,}"} if documents else {}
                running.advance(int(result is not None), **told)

            address = self.settings.ray
            return workers.run(function, tasks, workers=self._workers, address=address, label=label, progress=progress)

    def keep_only(self, done: Iterable[Path], kind: str) -> None:
        """Remove what lies there of other text or other settings."""
        wanted = {path.name for path in done}
        for path in self.work.glob(f"{kind}-*"):
            if path.name not in wanted:
                shutil.rmtree(path)

    def finish(self) -> None:
        """Remove all that was done: it is in the output now."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


@contextlib.contextmanager
def working_in(work: Path) -> Iterator[None]:
    """The folder for what is done, ours alone, which stays as long as there is something in it to go on from."""
    if work.exists() and not (work / _LOCK).exists() and any(work.iterdir()):
        raise ArtifactError(f"{work} is in the way and not ours: what is half-done goes there; choose another OUT")
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{work}: another process is preparing the same output; wait for it") from None
        try:
            yield
        except OSError as error:  # a full disk names no file
            error.filename = error.filename or str(work)
            raise
        finally:
            if any(work.glob(f"*/{MANIFEST}")):
                sys.stderr.write(f"what is done so far is kept in {work}; the same command goes on from there\n")
            else:
                shutil.rmtree(work)
