from __future__ import annotations

import math

import numpy as np
import pytest

from mcontriever.artifact import open_artifact, writing
from mcontriever.corpus.formats import Passage
from mcontriever.errors import ArtifactError, DataError
from mcontriever.retrieval.analysis import analyser, stemmer_name
from mcontriever.retrieval.lexical import K1, B, LexicalIndex


def terms(code, text):
    return analyser(code, stemmer_name(code))(text)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "Running, RUNS & don't!", ["run", "run", "don", "t"]),
        ("", "Running ﬁne", ["running", "fine"]),
        ("sw", "Kahawa inakunywa", ["kahawa", "inakunywa"]),
        ("fi", "talossa taloissa", ["talo", "talo"]),
        ("tr", "IŞIK", ["ışık"]),
        ("te", "తెలుగు భాష", ["తెలుగు", "భాష"]),
        ("bn", "ক্যালেন্ডার", ["ক্যালেন্ডার"]),
        ("ja", "京都に", ["京都", "都に"]),
        ("ja", "コーヒー。茶", ["コー", "ーヒ", "ヒー", "茶"]),
        ("ko", "커피는 3월", ["커피", "피는", "월", "3"]),
        ("th", "กาแฟ", ["กา", "าแ", "แฟ"]),
        ("km", "ភាសាខ្មែរ", ["ភាសា", "សាខ្មែ", "ខ្មែរ"]),
        ("en", "the 東京 tower", ["東京", "the", "tower"]),
        ("en", "soft\u00adware zero\u200dwidth", ["softwar", "zerowidth"]),
        ("en", "... — !", []),
    ],
)
def test_what_a_term_is(code, text, expected):
    assert terms(code, text) == expected


def test_arabic_is_stemmed():
    assert terms("ar", "المدارس") == terms("ar", "مدارس")


PASSAGES = [
    Passage("a", "Coffee", "coffee grows in Ethiopia", "en"),
    Passage("b", "", "tea grows in China and tea in India", "en"),
    Passage("c", "", "cats sleep", "en"),
    Passage("d", "", "kahawa hukua Ethiopia", "sw"),
    Passage("e", "", "京都の寺", "ja"),
    Passage("f", "", "!!!", "en"),
]


def naive(passages, query, code):
    """Lucene's BM25 from its definition."""
    bags = [terms(passage.language, f"{passage.title} {passage.text}") for passage in passages]
    average = sum(map(len, bags)) / len(bags)
    scores = np.zeros(len(bags))
    for term in terms(code, query):
        having = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
        for row, bag in enumerate(bags):
            count = bag.count(term)
            scores[row] += idf * count / (count + K1 * (1 - B + B * len(bag) / average))
    return scores


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("where grows tea", "en"),
        ("tea tea coffee", "en"),
        ("京都", "ja"),
        ("hukua kahawa", "sw"),
        ("nothing here", "en"),
    ],
)
def test_scores_are_bm25(query, code):
    index = LexicalIndex.build(PASSAGES)
    (scores,), (rows,) = index.search([query], 10, language=code)
    expected = naive(PASSAGES, query, code)
    order = [row for row in np.argsort(-expected, kind="stable") if expected[row] > 0]
    assert rows.tolist() == order
    np.testing.assert_allclose(scores, expected[order], rtol=1e-5)


def test_passages_without_a_shared_word_are_no_results():
    scores, rows = LexicalIndex.build(PASSAGES).search(["sleeping cats", "неизвестно", "?"], 5)
    assert rows[0].tolist() == [2]
    assert [len(row) for row in rows[1:]] == [0, 0]
    assert len(scores) == 3


def test_by_default_a_query_meets_passages_of_every_language():
    _, (rows,) = LexicalIndex.build(PASSAGES).search(["Ethiopia"], 5)
    assert set(rows.tolist()) == {0, 3}


def test_a_word_is_not_counted_once_per_language():
    alone, _ = LexicalIndex.build(PASSAGES).search(["kahawa"], 5, language="sw")
    together, _ = LexicalIndex.build(PASSAGES).search(["kahawa"], 5)
    np.testing.assert_array_equal(alone[0], together[0])


def test_ties_at_the_cut_come_in_row_order():
    index = LexicalIndex.build([Passage(str(n), "", "same words", "en") for n in range(20)])
    _, (rows,) = index.search(["words"], 3)
    assert rows.tolist() == [0, 1, 2]


def save(index, path):
    with writing(path, "index") as draft:
        index.save(draft.folder)
    return open_artifact(path, "index")


def test_saved_and_loaded_answers_the_same_with_the_same_bytes(tmp_path):
    index = LexicalIndex.build(PASSAGES)
    artifact = save(index, tmp_path / "one")
    loaded = LexicalIndex.load(artifact)
    queries = ["tea in Ethiopia", "京都", "кот"]
    for mine, theirs in zip(index.search(queries, 4), loaded.search(queries, 4), strict=True):
        for left, right in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(left, right)
    assert save(LexicalIndex.build(PASSAGES), tmp_path / "two").fingerprint == artifact.fingerprint
    assert not [name for name in artifact.files if name.endswith((".pkl", ".pickle", ".npz"))]


def test_a_pickle_in_place_of_an_array_is_refused(tmp_path):
    with writing(tmp_path / "index", "index") as draft:
        LexicalIndex.build(PASSAGES).save(draft.folder)
        # allow_pickle only here, to plant what loading must refuse
        np.save(draft.folder / "bm25/data.csc.index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="damaged"):
        LexicalIndex.load(open_artifact(tmp_path / "index", "index"))


def test_files_of_two_indexes_are_refused(tmp_path):
    other = save(LexicalIndex.build(PASSAGES[:2]), tmp_path / "other")
    with writing(tmp_path / "index", "index") as draft:
        LexicalIndex.build(PASSAGES).save(draft.folder)
        name = "bm25/vocab.index.json"
        (draft.folder / name).write_bytes(other.file(name).read_bytes())
    with pytest.raises(ArtifactError, match="do not belong together"):
        LexicalIndex.load(open_artifact(tmp_path / "index", "index"))


def test_a_corpus_without_words_is_refused():
    with pytest.raises(DataError, match="no words"):
        LexicalIndex.build([Passage("a", "", "...", "en")])
