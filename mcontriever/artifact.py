"""The one way anything gets on disk: a folder with a manifest, written aside, checksummed, renamed, verified on open.

A folder without a manifest is not an artifact, and a manifest is written last, so nothing half-written can look whole.
The manifest holds no time and no machine: the same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1


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
    """A folder being written. Put files into `folder` and facts into `meta`."""

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing(path: Path | str, kind: str, *, overwrite: bool = False) -> Iterator[Draft]:
    """Write an artifact aside and rename it to `path` when the block ends well; otherwise leave no trace."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)  # before looking: it may put an old version back
    if path.exists() and not overwrite:
        raise ArtifactError(f"{path} exists already; choose another place, or remove it first")
    draft = Draft(_aside(path))
    draft.folder.mkdir()
    try:
        yield draft
        _finish(draft, kind)
        _publish(draft.folder, path)
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
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{manifest}: damaged ({error}); write the folder again") from error
    if artifact.kind != kind:
        raise ArtifactError(f"{path}: holds {_named(artifact.kind)}, expected {_named(kind)}")
    if version != FORMAT:
        raise ArtifactError(f"{path}: format {version} is not the one this version reads ({FORMAT})")
    for name, facts in artifact.files.items():
        _check(path / name, facts, verify)
    return artifact


def is_artifact(path: Path | str, kind: str) -> bool:
    """Whether a complete artifact of that kind lies there (sizes checked, contents not read)."""
    try:
        open_artifact(path, kind, verify=False)
    except ArtifactError:
        return False
    return True


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Write one small file so that readers see the old text or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        aside.write_text(text, encoding="utf-8")
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
    files = {}
    for path in sorted(draft.folder.rglob("*")):
        if path.is_file():
            _sync(path)
            files[path.relative_to(draft.folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = draft.folder / MANIFEST
    content = {"artifact": kind, "format": FORMAT, "meta": draft.meta, "files": files}
    manifest.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(draft.folder)


def _publish(folder: Path, path: Path) -> None:
    """Rename into place. A folder cannot replace a full one in a single step: the old one steps aside first."""
    if path.exists():
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        folder.rename(path)
        shutil.rmtree(old)
    else:
        folder.rename(path)
    _sync(path.parent)


def _check(path: Path, facts: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, though {MANIFEST} lists it; copy or write the folder again")
    size = path.stat().st_size
    if size != facts["bytes"]:
        expected = facts["bytes"]
        raise ArtifactError(f"{path}: has {size} bytes, its manifest says {expected}; copy or write the folder again")
    if verify and sha256(path) != facts["sha256"]:
        raise ArtifactError(f"{path}: its content differs from its checksum; copy or write the folder again")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _sweep(path: Path) -> None:
    """Remove what dead writers of this path left behind; restore an old version a writer died while replacing."""
    for left in path.parent.glob(f".{path.name}.*-*"):
        match = re.fullmatch(re.escape(f".{path.name}.") + r"(partial|old)-(\d+)", left.name)
        if match and (int(match[2]) == os.getpid() or not _alive(int(match[2]))):  # in containers numbers come again
            if match[1] == "old" and not path.exists():
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
