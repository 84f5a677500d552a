"""Where shards lie until all of them are done, and how they become one artifact.

Any number of processes on any number of machines work in one folder, and none needs to hear of another: every one
reads all blocks, so it knows the name of every shard, and whoever finds all of them there puts them together.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, Artifact, open_artifact, write_text, writing
from ..corpus.report import BAD_LINES, Tally
from ..errors import ArtifactError, DataError
from ..progress import Bar, note
from .shard import SHARD, same_id
from .store import PassageStore
from .unique import IDS, same_hashes
from .vectors import KIND, folder_of

_DONE = f"[0-9]*/{MANIFEST}"  # of finished shards; those under way begin with a dot
_JOB, _LOCK = "embed.json", "embed.lock"
_LOOK = 2.0  # seconds between two looks at what has appeared
_PATIENCE = 5.0  # seconds for a worker of a run that was killed to notice it


class Busy(ArtifactError):
    """Another process does the same."""


def place_of(out: Path) -> Path:
    """The folder beside the output."""
    return out.resolve().with_name(f"{out.resolve().name}.shards")


def prepare_place(work: Path, wanted: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder ours; what another encoder or other settings have left there is an error, or removed."""
    if work.exists() and not (work / _LOCK).exists() and any(work.iterdir()):
        raise ArtifactError(f"{work} is in the way and not ours: what is half-done goes there; choose another OUT")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / _LOCK):
        job = work / _JOB
        if job.exists():
            try:
                found = json.loads(job.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ArtifactError(f"{job}: damaged ({error}); remove {work}") from error
            if found == wanted:
                return
            if not overwrite:
                changed = [name for name in wanted if found.get(name) != wanted[name]]
                told = ", ".join(f"{name} {_short(found.get(name))}, now {_short(wanted[name])}" for name in changed)
                raise ArtifactError(
                    f"{work} holds what was begun with another encoder or other settings ({told}); go on with those, "
                    "or give --overwrite to begin anew, or another OUT"
                )
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        write_text(job, json.dumps(wanted) + "\n")


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a lock file; with `busy`, that is the error where another process goes on holding it."""
    until = time.monotonic() + _PATIENCE
    while True:
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(busy) from None
                time.sleep(0.1)
                continue
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield
                return
        # the folder was put away while this waited, and another begun; where none was, FileNotFoundError has said so


def check_there(work: Path) -> None:
    """Raise FileNotFoundError if all was done and put away by another, as writing would make the folder anew."""
    (work / _LOCK).stat()


@contextlib.contextmanager
def keeping(work: Path, alone: bool) -> Iterator[None]:
    """Where the block fails, say that what is done is kept; a folder with nothing done goes, if it is ours `alone`."""
    try:
        yield
    except Busy:
        raise
    except BaseException:
        if any(work.glob(_DONE)):
            note(f"what is done so far is kept in {work}; the same command goes on from there")
        elif alone and (work / _LOCK).exists():
            _put_away(work)
        raise


def made_from(names: Sequence[str]) -> str:
    """One hash of all that decides the vectors: the shards' names have it all."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def join(out: Path, names: Sequence[str], about: Mapping[str, Any], *, bad_lines: float, overwrite: bool) -> bool:
    """Write OUT if all shards are there, and say so; False if some are still to be done elsewhere."""
    work = place_of(out)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(work / _LOCK))
        except FileNotFoundError:  # another one was faster
            return True
        missing = [name for name in names if not (work / name / MANIFEST).is_file()]
        if missing:
            if not work.exists():
                return True
            done = len(names) - len(missing)
            note(f"{work}: {done:,} of {len(names):,} shards are done; who does the last of them writes {out}")
            return False
        shards = [open_artifact(work / name, SHARD, verify=False) for name in names]
        _write(out, shards, {**about, "made_from": made_from(names)}, bad_lines, overwrite)
        _put_away(work)
    return True


def clear(out: Path, names: Sequence[str]) -> None:
    """Remove what is left of a run killed after it had written OUT, which has all these shards; no other's."""
    work = place_of(out)
    if (work / _LOCK).exists():
        with contextlib.suppress(FileNotFoundError), locked(work / _LOCK):
            if {path.parent.name for path in work.glob(_DONE)} <= set(names):
                _put_away(work)
    for left in work.parent.glob(f"{glob.escape(_aside(work))}*"):
        _remove(left)


def _put_away(work: Path) -> None:
    """Remove the folder, seen by the others as there or not there: half removed, none could tell whose it is."""
    aside = Path(tempfile.mkdtemp(prefix=_aside(work), dir=work.parent))
    work.rename(aside)
    _remove(aside)


def _aside(work: Path) -> str:
    return f".{work.name}.done-"


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another one removes it too
        shutil.rmtree(folder)


@contextlib.contextmanager
def watched(work: Path, numbers: Collection[int], of: int, running: Bar) -> Iterator[None]:
    """Advance a bar by the shards of these parts that appear: a task of Ray says nothing until it has done its part."""
    seen: set[Path] = set()

    def new() -> int:
        count = 0
        for path in set(work.glob(_DONE)) - seen:
            if int(path.parent.name.partition("-")[0]) % of in numbers:
                with contextlib.suppress(FileNotFoundError):  # made anew just now
                    count += int(json.loads(path.read_text(encoding="utf-8"))["meta"]["count"])
                    seen.add(path)
        return count

    def watch() -> None:
        while not over.wait(_LOOK):
            running.advance(new())

    over, watcher = threading.Event(), threading.Thread(target=watch, daemon=True)
    running.skip(new())
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        running.advance(new())


def _write(out: Path, shards: Sequence[Artifact], about: Mapping[str, Any], bad_lines: float, overwrite: bool) -> None:
    tally = Tally(bad_lines)
    for shard in shards:
        tally.add(shard.meta)
    tally.check()
    count = sum(shard.meta["count"] for shard in shards)
    if not count:
        raise DataError(f"{place_of(out)}: there is no passage in any line; expected lines like {{'_id', 'text'}}")
    _check_ids(shards, count)
    with writing(out, KIND, overwrite=overwrite) as draft:
        for number, shard in enumerate(shards):
            draft.adopt(shard, folder_of(number))
            if BAD_LINES in shard.files:
                with (draft.folder / BAD_LINES).open("ab") as stream:
                    stream.write(shard.file(BAD_LINES).read_bytes())
        languages: Counter[str] = Counter()
        for shard in shards:
            languages.update(shard.meta["read"])
        lost = [shard.meta["rounding"] for shard in shards]
        draft.meta |= about
        draft.meta |= {
            "count": count,
            "shards": [shard.meta["count"] for shard in shards],
            "languages": dict(sorted(languages.items())),
            "truncated": sum(shard.meta["truncated"] for shard in shards),
            "bad_lines": {"count": tally.bad, "of": tally.read, "first": tally.first},
            "rounding": {
                "largest": max(each["largest"] for each in lost),
                "mean": sum(each["sum"] for each in lost) / count,
            },
        }
    _tell(out, draft.meta)


def _check_ids(shards: Sequence[Artifact], count: int) -> None:
    for group in same_hashes([shard.file(IDS) for shard in shards], count):
        seen: dict[str, str] = {}
        for number, row, line in group:
            shard = shards[number]
            where = f"{shard.meta['file']}:{shard.meta['first_line'] + line}"
            name = PassageStore(shard)[row].id
            if name in seen:
                raise same_id(name, seen[name], where)
            seen[name] = where


def _tell(out: Path, meta: Mapping[str, Any]) -> None:
    """What the user must know of the result and would not look for."""
    bad = meta["bad_lines"]
    if bad["count"]:
        note(f"{bad['count']:,} bad lines of {bad['of']:,} were left out, all in {out / BAD_LINES}; the first:")
        for where, problem in bad["first"]:
            note(f"  {where}: {problem}")
    if meta["truncated"]:
        note(f"{meta['truncated']:,} of {meta['count']:,} passages were longer than the contract allows, and cut")
    if meta["dtype"] != "fp32":
        lost = meta["rounding"]
        note(
            f"stored as {meta['dtype']}: off by {lost['mean']:.2g} of a vector's length, {lost['largest']:.2g} at most"
        )


def _short(value: object) -> str:
    return str(value)[:12] or "not given"
