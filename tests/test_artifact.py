"""Artifacts are whole or not there, and damage is found when they are opened."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from mcontriever import artifact
from mcontriever.errors import ArtifactError, UsageError


def make(path, text="content", **options):
    with artifact.writing(path, "thing", **options) as draft:
        (draft.folder / "a.txt").write_text(text)
        (draft.folder / "below").mkdir()
        (draft.folder / "below" / "b.bin").write_bytes(bytes(range(256)))
        draft.meta["count"] = 2
    return path


def aside(role, process, name="x", host=""):
    return f".{name}.{role}-{host or socket.gethostname()}-{process}"


def dead_process():
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    return finished.pid


def test_what_is_written_is_what_is_opened(tmp_path):
    opened = artifact.open_artifact(make(tmp_path / "deep" / "x"), "thing")
    assert opened.meta == {"count": 2}
    assert sorted(opened.files) == ["a.txt", "below/b.bin"]
    assert opened.file("a.txt").read_text() == "content"
    assert artifact.is_artifact(tmp_path / "deep" / "x", "thing")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    with pytest.raises(ArtifactError, match=r"lists no file 'manifest\.json'"):
        opened.file("manifest.json")


def test_the_fingerprint_names_the_content_not_the_place(tmp_path):
    one, same, other = (
        artifact.open_artifact(make(tmp_path / name, text), "thing")
        for name, text in [("one", "a"), ("same", "a"), ("other", "b")]
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert (one.path / "manifest.json").read_bytes() == (same.path / "manifest.json").read_bytes()
    moved = shutil.copytree(one.path, tmp_path / "moved")
    assert artifact.open_artifact(moved, "thing").fingerprint == one.fingerprint


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


@pytest.mark.parametrize(
    ("out", "given", "word"),
    [
        ("in", "in", "is"),
        ("./below/../in", "in", "is"),
        ("link", "in", "is"),
        (".", "in", "holds"),
        ("in/out", "in", "lies in"),
        ("file.txt", "file.txt", "is"),
        ("link/out", "in", "lies in"),
    ],
)
def test_an_output_upon_an_input_is_refused(tmp_path, monkeypatch, out, given, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(UsageError) as caught:
        artifact.refuse_overlap(out, ["", "hub/name", tmp_path / given])
    assert f"the output {out} {word} the input {tmp_path / given};" in str(caught.value)
    artifact.refuse_overlap("in2", ["", "in", "file.txt", "in2"])
    artifact.refuse_overlap("below/out", ["in"])


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


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found(tmp_path):
    flip(make(tmp_path / "x") / "below" / "b.bin")
    with pytest.raises(ArtifactError, match=r"below/b\.bin: its content differs from its checksum"):
        artifact.open_artifact(tmp_path / "x", "thing")
    assert artifact.open_artifact(tmp_path / "x", "thing", verify=False).meta == {"count": 2}


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_or_missing_file_is_found_even_without_checksums(tmp_path, verify):
    os.truncate(make(tmp_path / "x") / "below" / "b.bin", 255)
    with pytest.raises(ArtifactError, match=r"b\.bin: has 255 bytes, its manifest says 256"):
        artifact.open_artifact(tmp_path / "x", "thing", verify=verify)
    (tmp_path / "x" / "below" / "b.bin").unlink()
    with pytest.raises(ArtifactError, match=r"b\.bin: missing, though manifest\.json lists it"):
        artifact.open_artifact(tmp_path / "x", "thing", verify=verify)
    assert not artifact.is_artifact(tmp_path / "x", "thing")


def test_what_is_no_artifact_or_another_is_refused(tmp_path):
    make(tmp_path / "x")
    with pytest.raises(ArtifactError, match="nowhere: no such folder; expected an index"):
        artifact.open_artifact(tmp_path / "nowhere", "index")
    with pytest.raises(ArtifactError, match="x: holds a thing, expected an index"):
        artifact.open_artifact(tmp_path / "x", "index")
    manifest = tmp_path / "x" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99 is not the one this version reads"):
        artifact.open_artifact(tmp_path / "x", "thing")
    for damaged in ("{", "[]", '{"artifact": "thing"}'):
        manifest.write_text(damaged)
        with pytest.raises(ArtifactError, match=r"manifest\.json: damaged") as caught:
            artifact.open_artifact(tmp_path / "x", "thing")
        assert "\n" not in str(caught.value)
    manifest.unlink()
    with pytest.raises(ArtifactError, match="was it written to the end"):
        artifact.open_artifact(tmp_path / "x", "thing")


FACTS = {"bytes": 7, "sha256": "0"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", []),
        ("files", {"a.txt": []}),
        ("files", {"a.txt": {"bytes": 7}}),
        ("files", {"a.txt": {"sha256": "0"}}),
        ("files", {"a.txt": {"bytes": "7", "sha256": "0"}}),
        ("files", {"../outside.txt": FACTS}),
        ("files", {"below/../../outside.txt": FACTS}),
        ("files", {"ABSOLUTE": FACTS}),
        ("files", {"": FACTS}),
        ("files", {"a\0": FACTS}),
        ("meta", None),
        ("artifact", ""),
        ("artifact", ["thing"]),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_that_we_never_wrote_is_refused_in_one_line(tmp_path, key, value, verify):
    manifest = make(tmp_path / "x") / "manifest.json"
    (tmp_path / "outside.txt").write_text("content")
    text = json.dumps(json.loads(manifest.read_text()) | {key: value})
    manifest.write_text(text.replace("ABSOLUTE", str(tmp_path / "outside.txt")))
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged") as caught:
        artifact.open_artifact(tmp_path / "x", "thing", verify=verify)
    assert "\n" not in str(caught.value)


def test_checksums_are_counted_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_BLOCK", 100)
    counted = []

    class Spy(artifact.Bar):
        def close(self):
            counted.append((self.label, self.done, self.total, self.unit))

    monkeypatch.setattr("mcontriever.progress.Bar", Spy)
    artifact.open_artifact(make(tmp_path / "x"), "thing")  # of 7 and 256 bytes
    assert counted == [("Checksums of the thing", 4, 4, "MiB"), (f"Verifying {tmp_path / 'x'}", 4, 4, "MiB")]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("token shards", "token shards"),
        ("vectors", "vectors"),
        ("train state", "a train state"),
        ("checkpoint", "a checkpoint"),
        ("index", "an index"),
    ],
)
def test_kinds_are_named_as_one_says_them(tmp_path, kind, named):
    with pytest.raises(ArtifactError, match=f"no such folder; expected {named}$"):
        artifact.open_artifact(tmp_path / "nowhere", kind)


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
