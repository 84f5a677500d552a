"""Where shards lie until all of them are done, and how they become one artifact.

Any number of processes on any number of machines work in one folder, and none needs to hear of another: every one
reads all blocks, so it knows the name of every shard, and whoever finds all of them there puts them together.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, Artifact, open_artifact, write_text, writing
from ..corpus.report import BAD_LINES, Tally
from ..errors import ArtifactError, DataError
from ..progress import note
from .shard import SHARD, Treatment, same_id
from .store import PassageStore
from .unique import IDS, same_hashes
from .vectors import KIND, folder_of

_JOB, _LOCK = "embed.json", "embed.lock"
_PATIENCE = 5.0  # seconds for a worker of a run that was killed to notice it


class Busy(ArtifactError):
    """Another process does the same."""


def place_of(out: Path) -> Path:
    """The folder beside the output."""
    return out.resolve().with_name(f"{out.resolve().name}.shards")


def prepare_place(work: Path, treatment: Treatment, overwrite: bool) -> None:
    """Make the folder ours; what another encoder or other settings have left there is an error, or removed."""
    if work.exists() and not (work / _LOCK).exists() and any(work.iterdir()):
        raise ArtifactError(f"{work} is in the way and not ours: what is half-done goes there; choose another OUT")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / _LOCK):
        job, wanted = work / _JOB, asdict(treatment)
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
    with path.open("a") as stream:
        until = time.monotonic() + _PATIENCE
        while busy:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(busy) from None
                time.sleep(0.1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def keeping(work: Path, alone: bool) -> Iterator[None]:
    """Where the block fails, say that what is done is kept; a folder with nothing done goes, if it is ours `alone`."""
    try:
        yield
    except Busy:
        raise
    except BaseException:
        if any(work.glob(f"*/{MANIFEST}")):
            note(f"what is done so far is kept in {work}; the same command goes on from there")
        elif alone and (work / _LOCK).exists():
            shutil.rmtree(work)
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
        shutil.rmtree(work)
    return True


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
    return str(value)[:12]
