"""Artifacts are whole or not there: a writer that fails or dies leaves nothing, and replaces nothing unasked."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from mcontriever import artifact
from mcontriever.errors import ArtifactError


def make(path, text="content", **options):
    with artifact.writing(path, "thing", **options) as draft:
        (draft.folder / "below").mkdir()
        for name in ("a.txt", "below/b.txt"):
            (draft.folder / name).write_text(text)
        draft.meta["count"] = 2
    return path


def aside(role, process, name="x", host=""):
    return f".{name}.{role}-{host or socket.gethostname()}-{process}"


def dead_process():
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    return finished.pid


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    def write():
        with artifact.writing(tmp_path / "x", "thing") as draft:
            (draft.folder / "a.txt").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_leaves_the_old_one(tmp_path):
    before = artifact.open_artifact(make(tmp_path / "x", "old"), "thing").fingerprint
    with pytest.raises(ValueError), artifact.writing(tmp_path / "x", "thing", overwrite=True):  # noqa: PT011
        raise ValueError
    assert artifact.open_artifact(tmp_path / "x", "thing").fingerprint == before
    make(tmp_path / "x", "new", overwrite=True)
    assert (tmp_path / "x" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_nothing_is_overwritten_unasked(tmp_path):
    make(tmp_path / "x", "old")
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"


def lay(path, what):
    if what in ("thing", "letter"):
        with artifact.writing(path.with_name("elsewhere"), what) as draft:
            (draft.folder / "mine.txt").write_text("mine")
        os.rename(path.with_name("elsewhere"), path)  # not Path.rename, which a test replaces
    elif what == "a file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
        if what == "a damaged manifest":
            (path / "manifest.json").write_text('["artifact"]')


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("what", ["letter", "a file", "a folder", "a damaged manifest"])
@pytest.mark.parametrize("meanwhile", [False, True])
def test_overwriting_replaces_nothing_of_another_kind(tmp_path, what, meanwhile):
    place = tmp_path / "x"
    if not meanwhile:
        lay(place, what)

    def write():
        with artifact.writing(place, "thing", overwrite=True) as draft:
            (draft.folder / "a.txt").write_text("new")
            if meanwhile:
                lay(place, what)
                before.update(content(tmp_path / "x") or {place: place.read_bytes()})

    before = {} if meanwhile else content(tmp_path)
    with pytest.raises(ArtifactError, match="x holds something else than a thing; choose another place"):
        write()
    assert content(tmp_path) == before != {}


@pytest.mark.parametrize("what", ["thing", "letter", "a file", "a folder"])
def test_what_appears_during_the_writing_stays(tmp_path, what):
    def write():
        with artifact.writing(tmp_path / "x", "thing") as draft:
            (draft.folder / "a.txt").write_text("new")
            lay(tmp_path / "x", what)

    with pytest.raises(ArtifactError, match="x exists already"):
        write()
    assert b"mine" in content(tmp_path).values()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("what", ["thing", "letter", "a file", "a folder"])
def test_what_appears_at_the_last_moment_stays(tmp_path, monkeypatch, what):
    real = artifact.Path.rename

    def rename(self, target):
        if ".partial-" in self.name and not target.exists():
            monkeypatch.undo()
            lay(target, what)
        return real(self, target)

    monkeypatch.setattr(artifact.Path, "rename", rename)
    with pytest.raises(ArtifactError, match="x appeared during the writing, and stays"):
        make(tmp_path / "x")
    assert b"mine" in content(tmp_path).values()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_replacement_that_fails_half_way_puts_the_old_one_back(tmp_path, monkeypatch):
    make(tmp_path / "x", "old")
    real = artifact.Path.rename

    def rename(self, target):
        if ".partial-" in self.name:
            raise OSError("the disk says no")
        return real(self, target)

    monkeypatch.setattr(artifact.Path, "rename", rename)
    with pytest.raises(OSError, match="the disk says no"):
        make(tmp_path / "x", "new", overwrite=True)
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_is_written_through_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "x")
    make(tmp_path / "x", "old")
    make(tmp_path / "x", "new", overwrite=True)
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "disk" / "x" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("number", [dead_process, os.getpid])
def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_sweeps(tmp_path, number):
    partial = tmp_path / aside("partial", number())
    partial.mkdir()
    (partial / "a.txt").write_text("half")
    dead = dead_process()
    others = {
        aside("partial", os.getppid()),  # still writing
        aside("partial", dead, name="xy"),
        aside("partial", dead, host="elsewhere"),  # perhaps alive there, on a shared disk
        aside("old", dead, host="elsewhere"),
    }
    for name in others:
        (tmp_path / name).mkdir()
    assert not artifact.is_artifact(partial, "thing")
    make(tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", *others}


def test_the_old_version_comes_back_when_a_writer_died_replacing_it(tmp_path):
    make(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / aside("old", dead_process()))
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "x", "new")
    assert artifact.open_artifact(tmp_path / "x", "thing").meta == {"count": 2}
    assert (tmp_path / "x" / "a.txt").read_text() == "old"


def test_text_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "below" / "x.json"
    artifact.write_text(file, "old ü")
    assert file.read_text(encoding="utf-8") == "old ü"
    with pytest.raises(UnicodeEncodeError):
        artifact.write_text(file, "new \ud800")
    assert file.read_text(encoding="utf-8") == "old ü"
    assert [path.name for path in file.parent.iterdir()] == ["x.json"]


def test_a_tensor_file_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    with pytest.raises(ArtifactError, match="could not be written"):
        artifact.save_tensors(tmp_path / "missing" / "x.safetensors", {"a": torch.zeros(2)})
