from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mcontriever import progress
from mcontriever.artifact import open_artifact, sha256, writing
from mcontriever.corpus.formats import Passage
from mcontriever.errors import ArtifactError, UsageError
from mcontriever.retrieval import index as index_module
from mcontriever.retrieval.index import DENSE, KIND, DenseIndex, IndexSettings, build_index, open_index
from mcontriever.retrieval.shard import SHARD, fill
from mcontriever.retrieval.vectors import Vectors, folder_of

N, D = 40, 6


def write_vectors(path, array, encoder="one"):
    passages = [Passage(f"p{row}", f"title {row}", f"text number{row} پ", "en") for row in range(len(array))]
    meta = {"fingerprint": encoder, "checkpoint": "/gone", "similarity": "dot", "dimension": array.shape[1]}
    with writing(path, "vectors") as draft:
        cuts = range(0, len(array), 16)
        for number, cut in enumerate(cuts):
            rows = slice(cut, cut + 16)
            with writing(path.with_name("shard"), SHARD, overwrite=True) as shard:
                fill(shard, passages[rows], [array[rows]], array.shape[1], "fp32")
            draft.adopt(open_artifact(path.with_name("shard"), SHARD), folder_of(number))
        counts = [len(passages[cut : cut + 16]) for cut in cuts]
        draft.meta.update(count=len(array), encoder=meta, dtype="fp32", shards=counts)
    shutil.rmtree(path.with_name("shard"))
    return passages


@pytest.fixture
def array():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32) * np.linspace(0.1, 5, N)[:, None].astype(
        np.float32
    )


@pytest.fixture
def built(tmp_path, array):
    write_vectors(tmp_path / "vectors", array)
    return build_index(IndexSettings(vectors=str(tmp_path / "vectors"), out=str(tmp_path / "index")))


@pytest.fixture
def no_faiss_reading(monkeypatch):
    """Any attempt to let FAISS read a file fails the test."""
    import faiss

    def refuse(*_):
        pytest.fail("FAISS was given a file that had not been verified")

    monkeypatch.setattr(faiss, "read_index", refuse)


@pytest.mark.parametrize(("queries", "k"), [(1, 1), (1, N), (2, 7), (50, 7), (50, N)])
def test_equals_brute_force(array, queries, k):
    asked = np.random.default_rng(1).standard_normal((queries, D)).astype(np.float32)
    scores, rows = DenseIndex.build(array).search(asked, k)
    products = asked @ array.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), rtol=1e-5, atol=1e-5)


def test_is_inner_product_and_not_distance_or_cosine():
    long, near = [10.0, 0.0], [1.0, 0.0]
    _, rows = DenseIndex.build(np.array([near, long], dtype=np.float32)).search(np.array([[1.0, 0.0]]), 2)
    assert rows.tolist() == [[1, 0]]


def test_ties_come_in_row_order():
    _, rows = DenseIndex.build(np.ones((9, D), dtype=np.float32)).search(np.ones((3, D)), 9)
    assert rows.tolist() == [list(range(9))] * 3


def test_among_keeps_to_those_rows(array):
    among = np.array([3, 30, 17])
    asked = np.random.default_rng(2).standard_normal((5, D)).astype(np.float32)
    _, rows = DenseIndex.build(array).search(asked, 3, among)
    np.testing.assert_array_equal(rows, among[np.argsort(-(asked @ array[among].T), axis=1)])
    with pytest.raises(UsageError, match="only 3 passages"):
        DenseIndex.build(array).search(asked, 4, among)


@pytest.mark.parametrize(("k", "said"), [(N + 1, f"only {N} passages"), (0, "at least 1"), (-3, "at least 1")])
def test_k_that_cannot_be_answered(array, k, said):
    with pytest.raises(UsageError, match=said):
        DenseIndex.build(array).search(np.ones((1, D)), k)


@pytest.mark.parametrize("bad", [np.ones((1, D + 1)), np.ones(D), np.full((1, D), np.nan)])
def test_queries_that_do_not_fit(array, bad):
    with pytest.raises(ArtifactError):
        DenseIndex.build(array).search(bad, 1)


def test_vectors_that_are_not_finite_are_named(array):
    array[7, 2] = np.inf
    with pytest.raises(ArtifactError, match="row 7"):
        DenseIndex.build(array)


def test_built_index_answers_as_the_vectors_do(built, array):
    artifact, passages = open_index(built)
    scores, rows = DenseIndex.load(artifact).search(array[:3], 5)
    np.testing.assert_array_equal(rows, np.argsort(-(array[:3] @ array.T), axis=1)[:, :5])
    assert passages[int(rows[0, 0])].id == f"p{rows[0, 0]}"
    assert scores.shape == (3, 5)


def test_same_inputs_are_kept_and_others_refused(built, tmp_path, array, capsys):
    before = sha256(built / "manifest.json")
    settings = IndexSettings(vectors=str(tmp_path / "vectors"), out=str(built))
    build_index(settings)
    assert "kept" in capsys.readouterr().err
    write_vectors(tmp_path / "others", array + 1)
    with pytest.raises(ArtifactError, match="made from other inputs"):
        build_index(IndexSettings(vectors=str(tmp_path / "others"), out=str(built)))
    assert sha256(built / "manifest.json") == before
    build_index(IndexSettings(vectors=str(tmp_path / "others"), out=str(built), overwrite=True))
    assert sha256(built / "manifest.json") != before


@pytest.mark.parametrize("out", ["vectors", "vectors/index", "."])
def test_the_vectors_are_never_the_output(tmp_path, array, out):
    write_vectors(tmp_path / "vectors", array)
    with pytest.raises(UsageError, match=r"the output .* the input .*vectors"):
        build_index(IndexSettings(vectors=str(tmp_path / "vectors"), out=str(tmp_path / out), overwrite=True))
    assert len(Vectors.open(tmp_path / "vectors")) == N


def test_what_is_no_index_is_never_replaced(tmp_path, array):
    write_vectors(tmp_path / "vectors", array)
    write_vectors(tmp_path / "precious", array[:3])
    (tmp_path / "notes.txt").write_text("mine")
    for out in ("precious", "notes.txt"):
        with pytest.raises(ArtifactError, match=f"{out} holds something else than an index"):
            build_index(IndexSettings(vectors=str(tmp_path / "vectors"), out=str(tmp_path / out), overwrite=True))
    assert len(Vectors.open(tmp_path / "precious")) == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_every_long_step_has_a_bar(tmp_path, array, monkeypatch):
    counted = {}

    class Spy(progress.Bar):
        def close(self):
            counted[self.label] = (self.done, self.total, self.unit)

    write_vectors(tmp_path / "vectors", array)
    monkeypatch.setattr(progress, "Bar", Spy)
    build_index(IndexSettings(vectors=str(tmp_path / "vectors"), out=str(tmp_path / "index")))
    assert counted["Indexing"] == (N, N, "vectors")
    assert counted["BM25 terms"] == (N, N, "passages")
    terms = len(json.loads((tmp_path / "index" / "bm25" / "vocab.index.json").read_text()))
    assert counted["BM25 scores"] == (terms, terms, "terms")


def test_same_vectors_give_the_same_bytes(built, tmp_path):
    again = build_index(IndexSettings(vectors=str(tmp_path / "vectors"), out=str(tmp_path / "again")))
    assert (again / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()


@pytest.mark.parametrize("at", [0, 4, 8, 32, 33, 37, 60, -1])
def test_one_flipped_bit_is_refused_before_faiss_reads(built, no_faiss_reading, at):
    file = built / DENSE
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="checksum"):
        open_index(built)


@pytest.mark.parametrize("cut", [0, 3, 44, 45, 100])
def test_truncation_is_refused_before_faiss_reads(built, no_faiss_reading, cut):
    file = built / DENSE
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=f"has {cut} bytes"):
        open_index(built)


@pytest.mark.parametrize("at", [0, 4, 8, 32, 33, 37])
def test_a_wrong_header_with_a_matching_checksum_is_refused_too(built, no_faiss_reading, at):
    """A manifest written for the damaged file (or another index under this name): the header still gives it away."""
    file = built / DENSE
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    manifest = built / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][DENSE]["sha256"] = sha256(file)
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="index again"):
        DenseIndex.load(open_index(built)[0])


@pytest.mark.parametrize("name", ["passages.jsonl", "lines.npy", DENSE, "bm25/vocab.index.json"])
def test_a_missing_file_is_named(built, name):
    (built / name).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_index(built)


def test_an_l2_index_is_refused(tmp_path, array):
    import faiss

    write_vectors(tmp_path / "vectors", array)
    with writing(tmp_path / "index", KIND) as draft:
        draft.meta.update(count=N, encoder={"dimension": D})
        l2 = faiss.IndexFlatL2(D)
        l2.add(array)
        faiss.write_index(l2, str(draft.folder / DENSE))
    with pytest.raises(ArtifactError, match="inner-product"):
        DenseIndex.load(open_artifact(tmp_path / "index", KIND))


def test_vectors_of_the_wrong_shape_are_refused(tmp_path, array):
    write_vectors(tmp_path / "vectors", array)
    manifest = tmp_path / "vectors" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["meta"]["encoder"]["dimension"] = D + 1
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="embed again"):
        Vectors.open(tmp_path / "vectors")


def test_passages_by_row_never_from_the_end(tmp_path, array):
    passages = write_vectors(tmp_path / "vectors", array)
    vectors = Vectors.open(tmp_path / "vectors")
    assert [vectors.passages[row] for row in (0, 5, N - 1)] == [passages[0], passages[5], passages[N - 1]]
    assert list(vectors.passages) == passages
    for row in (-1, N):
        with pytest.raises(IndexError):
            vectors.passages[row]


def test_header_length_is_faiss_s(tmp_path):
    DenseIndex.build(np.ones((2, 3), dtype=np.float32)).save(tmp_path / "x")
    assert (tmp_path / "x").stat().st_size == index_module._HEADER.size + 2 * 3 * 4
    assert Path(index_module.__file__).name == "index.py"
