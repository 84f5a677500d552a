"""The one way anything gets on disk: a folder with a manifest, written aside, checksummed, renamed, verified on open.

A folder without a manifest is not an artifact, and a manifest is written last, so nothing half-written can look whole.
The manifest holds no time and no machine: the same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, UsageError
from .progress import Bar, bar

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1
_BLOCK = 1 << 20  # read at a time while hashing, and the unit its progress is counted in


@dataclass(frozen=True)
class Artifact:
    """A verified folder: its `kind`, what it says of itself (`meta`), and its files with their checksums."""

    path: Path
    kind: str
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        """The path of a file the manifest lists; one it does not list is an error, present or not."""
        if name not in self.files:
            raise ArtifactError(f"{self.path}: its manifest lists no file {name!r}")
        return self.path / name

    @property
    def fingerprint(self) -> str:
        """One hash for the whole content, for others to name it by."""
        return hashlib.sha256(_canonical([self.kind, self.meta, self.files]).encode()).hexdigest()


@dataclass
class Draft:
    """A folder being written. Put files into `folder` and facts into `meta`; `loose` files may be edited later."""

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def adopt(self, artifact: Artifact, name: str) -> None:
        """Make a finished artifact the folder `name` of this one; its checksums are taken over, not made anew."""
        for file, facts in artifact.files.items():
            place = self.folder / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(artifact.path / file, place)
            self.known[f"{name}/{file}"] = facts
        _link(artifact.path / MANIFEST, self.folder / name / MANIFEST)


@contextlib.contextmanager
def writing(path: Path | str, kind: str, *, overwrite: bool = False) -> Iterator[Draft]:
    """Write an artifact aside and rename it to `path` when the block ends well; otherwise leave no trace.

    `overwrite` replaces an artifact of the same kind and nothing else.
    """
    place = Path(path).resolve()  # a link's target is written, and the link stays
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place)  # before looking: it may put an old version back
    _check_place(place, kind, overwrite)
    draft = Draft(_aside(place))
    draft.folder.mkdir()
    try:
        yield draft
        _finish(draft, kind)
        _publish(draft.folder, place, kind, overwrite)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise


def open_artifact(path: Path | str, kind: str, *, verify: bool = True) -> Artifact:
    """Open and verify: the manifest, then every file's size and, unless `verify` is off, its SHA-256."""
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; expected {_named(kind)}")
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ArtifactError(f"{path}: not {_named(kind)} (it has no {MANIFEST}); was it written to the end?")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        artifact = Artifact(path, content["artifact"], content["meta"], content["files"])
        version = content["format"]
        _check_manifest(artifact)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{manifest}: damaged ({error}); write the folder again") from error
    if artifact.kind != kind:
        raise ArtifactError(f"{path}: holds {_named(artifact.kind)}, expected {_named(kind)}")
    if version != FORMAT:
        raise ArtifactError(f"{path}: format {version} is not the one this version reads ({FORMAT})")
    for name, facts in artifact.files.items():
        _check_size(path / name, facts["bytes"])
    if verify:
        with bar(f"Verifying {path}", sum(map(blocks, (path / name for name in artifact.files))), "MiB") as running:
            for name, facts in artifact.files.items():
                if sha256(path / name, running) != facts["sha256"]:
                    raise ArtifactError(
                        f"{path / name}: its content differs from its checksum; copy or write the folder again"
                    )
    return artifact


def refuse_other(path: Path | str, kind: str) -> None:
    """Say at once, before any work, that what lies at `path` is not of this kind and so is not ours to replace."""
    path = Path(path)
    if os.path.lexists(path) and _kind_at(path) != kind:
        raise ArtifactError(f"{path} holds something else than {_named(kind)}; choose another place")


def refuse_overlap(out: Path | str, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is one of the inputs, holds one or lies in one: what is read must outlive the writing.

    Empty inputs (not given) and those that are no path here (names on the hub) are passed over.
    """
    place = Path(out).resolve()
    for given in inputs:
        source = Path(given).resolve()
        if os.fspath(given) and source.exists() and (source in (place, *place.parents) or place in source.parents):
            where = "is" if source == place else "holds" if place in source.parents else "lies in"
            raise UsageError(f"the output {out} {where} the input {given}; choose another place for it")


def is_artifact(path: Path | str, kind: str) -> bool:
    """Whether a complete artifact of that kind lies there (sizes checked, contents not read)."""
    try:
        open_artifact(path, kind, verify=False)
    except ArtifactError:
        return False
    return True


def sha256(path: Path, running: Bar | None = None) -> str:
    """The hash of a file's bytes; a bar given counts its `blocks`."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
            if running is not None:
                running.advance()
    return digest.hexdigest()


def blocks(path: Path) -> int:
    """How many MiB `sha256` will count for a file, the last one begun included."""
    return -(-path.stat().st_size // _BLOCK)


def write_text(path: Path | str, text: str) -> None:
    """Write one small file so that readers see the old text or the new, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """As `write_text`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        aside.write_bytes(content)
        _sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; a full disk is an error of ours and not of the library that met it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # transformers refuses a file that does not state its format
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ArtifactError(f"{path}: could not be written: {error}") from error
    path.chmod(0o644)  # safetensors writes for the owner's eyes alone


def _finish(draft: Draft, kind: str) -> None:
    files = dict(draft.known)
    found = sorted(path for path in draft.folder.rglob("*") if path.is_file())
    paths = [path for path in found if path.relative_to(draft.folder).as_posix() not in files]
    with bar(f"Checksums of the {kind}", sum(map(blocks, paths)), "MiB") as running:
        for path in paths:
            _sync(path)
            name = path.relative_to(draft.folder).as_posix()
            if name in draft.loose:
                continue
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path, running)}
    manifest = draft.folder / MANIFEST
    content = {"artifact": kind, "format": FORMAT, "meta": draft.meta, "files": files}
    manifest.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(draft.folder)


def _link(source: Path, place: Path) -> None:
    """The same file under a second name, so that losing one name loses nothing; a copy where there are no links."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
        _sync(place)


def _publish(folder: Path, path: Path, kind: str, overwrite: bool) -> None:
    """Rename into place. A folder cannot replace a full one in a single step: the old one steps aside first."""
    _check_place(path, kind, overwrite)  # again: the writing took its time
    if path.exists():
        old = _aside(path, "old")
        path.rename(old)
        try:
            folder.rename(path)
        except BaseException:
            if not os.path.lexists(path):
                old.rename(path)
            raise
        shutil.rmtree(old)
    else:
        try:
            folder.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ArtifactError(f"{path} appeared during the writing, and stays; choose another place") from error
    _sync(path.parent)


def _check_place(path: Path, kind: str, overwrite: bool) -> None:
    if overwrite:
        refuse_other(path, kind)
    elif os.path.lexists(path):
        raise ArtifactError(f"{path} exists already; choose another place, or remove it first")


def _kind_at(path: Path) -> str | None:
    """What the manifest there says it is, damaged or not otherwise; None where there is no manifest to say it."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    kind = content.get("artifact") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def _check_manifest(artifact: Artifact) -> None:
    """Raise ValueError if the parts are not of the types we write, or a file's name leads out of the folder."""
    if not (isinstance(artifact.kind, str) and artifact.kind):
        raise ValueError(f"its kind is {artifact.kind!r}")
    for part, value in (("meta", artifact.meta), ("files", artifact.files)):
        if not isinstance(value, dict):
            raise ValueError(f"{part!r} is a {type(value).__name__}, not an object")
    for name, facts in artifact.files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file in the folder")
        if not (isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str)):
            raise ValueError(f"{name!r} lacks its 'bytes' or 'sha256'")


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, though {MANIFEST} lists it; copy or write the folder again")
    size = path.stat().st_size
    if size != expected:
        raise ArtifactError(f"{path}: has {size} bytes, its manifest says {expected}; copy or write the folder again")


def _aside(path: Path, role: str = "partial") -> Path:
    return path.with_name(f".{path.name}.{role}-{_host()}-{os.getpid()}")


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _sweep(path: Path) -> None:
    """Remove what dead writers of this path left behind; restore an old version a writer died while replacing.

    Only this host's: whether a process lives on another, a shared disk does not tell.
    """
    pattern = re.compile(re.escape(f".{path.name}.") + "(partial|old)-" + re.escape(_host()) + r"-(\d+)")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        match = pattern.fullmatch(left.name)
        if match and (int(match[2]) == os.getpid() or not _alive(int(match[2]))):  # in containers numbers come again
            if match[1] == "old" and not os.path.lexists(path):
                left.rename(path)
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _named(kind: str) -> str:
    if kind.endswith("s"):  # token shards, vectors
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
