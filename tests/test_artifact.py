"""Artifacts are whole or not there, and damage is found when they are opened."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mcontriever import artifact
from mcontriever.errors import ArtifactError


def make(path, text="content", **options):
    with artifact.writing(path, "thing", **options) as draft:
        (draft.folder / "a.txt").write_text(text)
        (draft.folder / "below").mkdir()
        (draft.folder / "below" / "b.bin").write_bytes(bytes(range(256)))
        draft.meta["count"] = 2
    return path


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


@pytest.mark.parametrize("number", [dead_process, os.getpid])
def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_sweeps(tmp_path, number):
    partial = tmp_path / f".x.partial-{number()}"
    partial.mkdir()
    (partial / "a.txt").write_text("half")
    still_writing, of_another = f".x.partial-{os.getppid()}", f".xy.partial-{dead_process()}"
    for name in (still_writing, of_another):
        (tmp_path / name).mkdir()
    assert not artifact.is_artifact(partial, "thing")
    make(tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", still_writing, of_another}


def test_the_old_version_comes_back_when_a_writer_died_replacing_it(tmp_path):
    make(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / f".x.old-{dead_process()}")
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
