"""Artifacts are opened as they were written, and damage is found when they are."""

import json
import os
import shutil

import pytest

from mcontriever import artifact
from mcontriever.errors import ArtifactError, UsageError


def make(path, text="content"):
    with artifact.writing(path, "thing") as draft:
        (draft.folder / "a.txt").write_text(text)
        (draft.folder / "below").mkdir()
        (draft.folder / "below" / "b.bin").write_bytes(bytes(range(256)))
        draft.meta["count"] = 2
    return path


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
