"""Embedding in shards: whoever does them, however often it is stopped, the same bytes; and nothing mixed in silence."""

import json
import shutil

import numpy as np
import pytest
from embedding import COUNT, SHARD, asked, content, rows, write

from mcontriever.artifact import open_artifact
from mcontriever.encoder import Encoder
from mcontriever.errors import ArtifactError, DataError, SettingsError
from mcontriever.retrieval import IndexSettings, Searcher, Vectors, build_index, embed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mcontriever.artifact._sync", lambda path: None)  # dozens of tiny shards


def embedded(monkeypatch):
    """How many passages each shard has given to the encoder, as it goes."""
    counts, real = [], Encoder.stream

    def counted(self, passages, **options):
        counts.append(len(passages))
        return real(self, passages, **options)

    monkeypatch.setattr(Encoder, "stream", counted)
    return counts


def test_what_is_made(whole, models, corpus):
    vectors = Vectors.open(whole)
    assert [passage.id for passage in vectors.passages] == [row["_id"] for row in rows()]
    assert {passage.language for passage in vectors.passages} == {"en"}
    from mcontriever.encoder import load

    expected = load(models / "1").encode_passages([row["text"] for row in rows()])
    np.testing.assert_allclose(vectors.vectors, expected, atol=1e-5)
    meta = vectors.artifact.meta
    assert (meta["count"], meta["shards"], meta["languages"]) == (COUNT, [4, 4, 4, 4, 4, 3], {"en": COUNT})
    assert (meta["bad_lines"]["count"], meta["truncated"], meta["dtype"]) == (0, 0, "fp32")
    assert meta["encoder"]["tokenizer"] == load(models / "1").tokenizer.fingerprint
    assert not whole.with_name("out.shards").exists()
    for number in range(6):  # each is an artifact of its own
        open_artifact(whole / f"0000{number}", "vector shard")


def test_rows_are_read_as_from_one_array(whole):
    rows = Vectors.open(whole).vectors
    array = np.asarray(rows)
    assert (rows.shape, rows.dtype, len(rows)) == (array.shape, array.dtype, COUNT)
    for key in (slice(None), slice(3, 9), slice(8, 8), slice(-5, None), slice(0, 23, 5), slice(20, 99)):
        np.testing.assert_array_equal(rows[key], array[key])
    for key in (0, 22, -1, np.array([5, 0, 22, 5]), np.array([], dtype=int), np.arange(COUNT) % 2 == 0):
        np.testing.assert_array_equal(rows[key], array[key])
    with pytest.raises(IndexError):
        rows[COUNT]


def test_few_shards_stay_open(whole, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.vectors._OPEN", 2)
    few = Vectors.open(whole)
    np.testing.assert_array_equal(few.vectors[:], Vectors.open(whole).vectors[:])
    assert [each.id for each in few.passages] == [row["_id"] for row in rows()]
    assert len(few._opened) == 2


def test_a_changed_line_costs_its_shard_only(models, tmp_path, monkeypatch, capsys):
    lines = rows()
    corpus = write(tmp_path / "corpus.en.jsonl", [*lines[:22], "{"])
    with pytest.raises(DataError, match=r"corpus.en.jsonl:23: not JSON.*--bad_lines"):
        embed(asked(models, corpus, tmp_path / "out"))
    assert "what is done so far is kept" in capsys.readouterr().err
    write(corpus, [*lines[:9], lines[9] | {"text": "another text"}, *lines[10:]])
    counts = embedded(monkeypatch)
    embed(asked(models, corpus, tmp_path / "out"))
    assert counts == [4, 3]
    clean = embed(asked(models, corpus, tmp_path / "clean"))
    assert content(tmp_path / "out") == content(clean)
    assert Vectors.open(clean).passages[9].text == "another text"


@pytest.mark.parametrize("change", [{"model": 2}, {"precision": "bf16"}, {"dtype": "fp16"}, {"shard_passages": 5}])
def test_another_encoder_or_setting_is_never_mixed_in(models, corpus, whole, tmp_path, change):
    out = tmp_path / "out"
    embed(asked(models, corpus, out, shard="0/2"))
    with pytest.raises(ArtifactError, match=r"out.shards holds what was begun with another encoder or other settings"):
        embed(asked(models, corpus, out, **change))
    embed(asked(models, corpus, out, overwrite=True, **change))
    assert content(out) != content(whole)
    assert not out.with_name("out.shards").exists()
    assert content(out) == content(embed(asked(models, corpus, tmp_path / "clean", **change)))
    with pytest.raises(ArtifactError, match="made from other inputs"):
        embed(asked(models, corpus, out))


def test_other_passages_at_out_are_refused_before_anything_is_embedded(models, corpus, whole, tmp_path, monkeypatch):
    counts = embedded(monkeypatch)
    other = write(tmp_path / "corpus.en.jsonl", rows()[1:])
    with pytest.raises(ArtifactError, match="made from other inputs"):
        embed(asked(models, other, whole))
    embed(asked(models, corpus, whole))
    assert counts == []


def test_another_language_half_way_is_refused_and_named(models, corpus, tmp_path):
    embed(asked(models, corpus, tmp_path / "out", shard="0/2"))
    with pytest.raises(ArtifactError, match=r"\(language not given, now sw\)"):
        embed(asked(models, corpus, tmp_path / "out", language="sw"))


def test_overwriting_keeps_what_is_the_same_and_replaces_what_is_damaged(models, corpus, whole, tmp_path, monkeypatch):
    counts, out = embedded(monkeypatch), tmp_path / "out"
    shutil.copytree(whole, out)
    embed(asked(models, corpus, out, overwrite=True))
    assert counts == []
    (out / "00001/vectors.npy").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="vectors.npy"):
        embed(asked(models, corpus, out))
    embed(asked(models, corpus, out, overwrite=True))
    assert sum(counts) == COUNT
    assert content(out) == content(whole)


def test_bad_lines_are_counted_located_and_limited(models, whole, tmp_path, capsys):
    lines = rows()
    bad = ["{", '{"_id": "x"}', '{"_id": "y", "text": "\\u200b"}']
    corpus = write(tmp_path / "corpus.en.jsonl", [*lines[:6], *bad[:2], *lines[6:], bad[2], ""])
    with pytest.raises(DataError, match=r"^.*/corpus.en.jsonl:7: not JSON.*mend it, or allow some such lines"):
        embed(asked(models, corpus, tmp_path / "out"))
    for limit in (2, 0.05):
        with pytest.raises(DataError, match=rf"3 of 26 lines are bad, --bad_lines allows {limit}; one of them corpus"):
            embed(asked(models, corpus, tmp_path / "out", bad_lines=limit))
    out = embed(asked(models, corpus, tmp_path / "out", bad_lines=3))
    told = capsys.readouterr().err
    assert "3 bad lines of 26 were left out" in told
    assert "corpus.en.jsonl:8: expected text under 'text', got None" in told
    artifact = open_artifact(out, "vectors")
    assert (artifact.meta["bad_lines"]["count"], artifact.meta["count"]) == (3, COUNT)
    written = [json.loads(line)["where"] for line in artifact.file("bad-lines.jsonl").read_text().splitlines()]
    assert written == [f"corpus.en.jsonl:{line}" for line in (7, 8, 26)]
    np.testing.assert_allclose(Vectors.open(out).vectors, Vectors.open(whole).vectors, atol=1e-5)
    assert [each.id for each in Vectors.open(out).passages] == [row["_id"] for row in lines]


@pytest.mark.parametrize(("first", "second"), [(1, 3), (1, 21)])
def test_an_id_that_occurs_twice_is_an_error_whose_cure_is_cheap(models, tmp_path, monkeypatch, first, second):
    lines = rows()
    lines[second] = lines[second] | {"_id": lines[first]["_id"]}
    corpus = write(tmp_path / "corpus.en.jsonl", lines)
    words = rf"corpus.en.jsonl:{second + 1}: the passage id 'p{first}' occurs already at .*corpus.en.jsonl:{first + 1};"
    with pytest.raises(DataError, match=words):
        embed(asked(models, corpus, tmp_path / "out"))
    lines[second] = ""
    write(corpus, lines)
    counts = embedded(monkeypatch)
    embed(asked(models, corpus, tmp_path / "out"))
    assert len(Vectors.open(tmp_path / "out")) == COUNT - 1
    assert sum(counts) <= (COUNT - 1 if second < SHARD else SHARD)


@pytest.mark.parametrize(("dtype", "bound", "size"), [("fp16", 1e-3, 2), ("bf16", 8e-3, 2), ("int8", 0.02, 1)])
def test_smaller_vectors(models, corpus, whole, tmp_path, dtype, bound, size):
    out = embed(asked(models, corpus, tmp_path / "out", dtype=dtype))
    exact, found = Vectors.open(whole).vectors[:], Vectors.open(out)
    errors = np.linalg.norm(found.vectors[:] - exact, axis=1) / np.linalg.norm(exact, axis=1)
    told = found.artifact.meta["rounding"]
    assert 0 < errors.max() <= bound
    assert (told["largest"], told["mean"]) == (pytest.approx(errors.max(), rel=1e-4), pytest.approx(errors.mean()))
    assert (out / "00000/vectors.npy").stat().st_size == 128 + SHARD * 16 * size
    np.testing.assert_array_equal(found.vectors[np.array([20, 3])], found.vectors[:][[20, 3]])
    build_index(IndexSettings(vectors=str(out), out=str(tmp_path / "index"), lexical=False))
    hits = Searcher.open(tmp_path / "index").search("river", k=COUNT)
    assert {hit.id for hit in hits} == {row["_id"] for row in rows()}


def test_a_vector_too_large_for_fp16_is_named(models, corpus, tmp_path, monkeypatch):
    real = Encoder.stream

    def large(self, passages, **options):
        return (
            (chunk, vectors * (1e6 if chunk[0].id == "p4" else 1)) for chunk, vectors in real(self, passages, **options)
        )

    monkeypatch.setattr(Encoder, "stream", large)
    with pytest.raises(ArtifactError, match="passage 'p4' is too large for fp16; take --dtype bf16"):
        embed(asked(models, corpus, tmp_path / "out", dtype="fp16"))


def test_what_is_cut_is_counted(models, tmp_path, capsys):
    corpus = write(tmp_path / "corpus.en.jsonl", [{"_id": "a", "text": "river " * 9000}, {"_id": "b", "text": "lake"}])
    out = embed(asked(models, corpus, tmp_path / "out"))
    assert Vectors.open(out).artifact.meta["truncated"] == 1
    assert "1 of 2 passages were longer than the contract allows, and cut" in capsys.readouterr().err


def test_vectors_replaced_while_they_are_read_are_noticed(models, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.retrieval.vectors._OPEN", 1)
    out = embed(asked(models, corpus, tmp_path / "out"))
    vectors = Vectors.open(out)
    embed(asked(models, corpus, out, model=2, overwrite=True))
    with pytest.raises(ArtifactError, match="was replaced while it was read"):
        vectors.vectors[:]


def test_a_folder_in_the_way_and_no_passages(models, corpus, tmp_path):
    (tmp_path / "out.shards").mkdir()
    (tmp_path / "out.shards" / "mine").write_text("precious")
    with pytest.raises(ArtifactError, match="in the way and not ours"):
        embed(asked(models, corpus, tmp_path / "out"))
    assert (tmp_path / "out.shards" / "mine").read_text() == "precious"
    with pytest.raises(DataError, match="no passage in any line"):
        embed(asked(models, write(tmp_path / "corpus.jsonl", ["", " "]), tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard": "4/4"}, "shard must be I/N"),
        ({"shard": "1"}, "shard must be I/N"),
        ({"corpus": "-", "workers": 2}, "standard input"),
        ({"corpus": "-", "ray": "auto"}, "standard input"),
        ({"device": "cuda:1", "workers": 2}, "all would be put on cuda:1: give --device cuda"),
        ({"device": "cuda:1", "ray": "auto"}, "all would be put on cuda:1: give --device cuda"),
        ({"bad_lines": -1}, "bad_lines must be 0 or more"),
        ({"dtype": "fp8"}, "dtype"),
        ({"language": "Swahili"}, "language must be a code"),
    ],
)
def test_settings_that_make_no_sense(models, changes, said):
    with pytest.raises(SettingsError, match=said):
        asked(models, **({"corpus": "c", "out": "o"} | changes))
