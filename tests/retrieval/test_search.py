from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from embedding import make_encoder

from mcontriever.artifact import open_artifact, sha256
from mcontriever.corpus.formats import Passage
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.errors import ArtifactError, DataError, UsageError
from mcontriever.retrieval import (
    EmbedSettings,
    IndexSettings,
    Searcher,
    SearchSettings,
    Vectors,
    build_index,
    embed,
    search_command,
)
from mcontriever.retrieval.terminal import FIRST_STRONG, POP, RIGHT_TO_LEFT, show, wrap
from mcontriever.retrieval.vectors import encoder_fingerprint

ROWS = {
    "en": [("Coffee", "Coffee is a drink made from roasted beans."), ("", "Penicillin was found by Fleming in 1928.")],
    "sw": [("Kahawa", "Kahawa ni kinywaji kinachotengenezwa kwa mbegu zilizokaangwa.")],
    "ar": [("القهوة", "القهوة مشروب يصنع من حبوب محمصة")],
    "ja": [("", "コーヒーは焙煎した豆から作る飲み物です。")],
}
PASSAGES = [
    Passage(f"{code}{number}", title, text, code)
    for code in sorted(ROWS)
    for number, (title, text) in enumerate(ROWS[code])
]
QUERIES = ["what is coffee", "مشروب", "コーヒー"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([passage.text for passage in PASSAGES] * 3, 85)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return make_encoder(tokenizer, 1)


@pytest.fixture(scope="module")
def road(tmp_path_factory, encoder):
    """checkpoint -> corpus -> vectors -> index, as the commands do it."""
    folder = tmp_path_factory.mktemp("road")
    save(encoder, folder / "model")
    (folder / "corpus").mkdir()
    for code, rows in ROWS.items():
        lines = [
            json.dumps({"_id": f"{code}{number}", "title": title, "text": text}, ensure_ascii=False)
            for number, (title, text) in enumerate(rows)
        ]
        (folder / f"corpus/corpus.{code}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    embed(settings_for(folder))
    build_index(IndexSettings(vectors=str(folder / "vectors"), out=str(folder / "index")))
    return folder


def settings_for(folder, **changes):
    plain = {"checkpoint": folder / "model", "corpus": folder / "corpus", "out": folder / "vectors"}
    values = plain | changes
    return EmbedSettings(**{name: value if isinstance(value, int) else str(value) for name, value in values.items()})


def brute_force(encoder, query, passages):
    """One at a time, no index: (id, score), best first."""
    asked = encoder.encode_queries([query])[0]
    scores = [float(encoder.encode_passages([(p.title, p.text)])[0] @ asked) for p in passages]
    order = np.argsort(-np.array(scores), kind="stable")
    return [(passages[row].id, pytest.approx(scores[row], abs=1e-4)) for row in order]


@pytest.mark.parametrize("query", QUERIES)
def test_the_road_answers_as_brute_force_does(road, encoder, query):
    hits = Searcher.open(road / "index").search(query, k=len(PASSAGES))
    assert [(hit.id, hit.score) for hit in hits] == brute_force(encoder, query, PASSAGES)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert {Passage(hit.id, hit.title, hit.text, hit.language) for hit in hits} == set(PASSAGES)


def test_in_memory_equals_on_disk_and_many_equals_one(road, encoder):
    memory, disk = Searcher.from_passages(encoder, PASSAGES), Searcher.open(road / "index", encoder)
    many = disk.search_many(QUERIES, 3)
    for query, hits in zip(QUERIES, many, strict=True):
        assert [hit.id for hit in hits] == [hit.id for hit in memory.search(query, 3)]
        assert [hit.id for hit in hits] == [hit.id for hit in disk.search(query, 3)]
    assert disk.search_many([], 3) == []


def test_texts_and_pairs_become_passages(encoder):
    searcher = Searcher.from_passages(encoder, ["plain text", ("title", "and text")])
    hits = {hit.id: (hit.title, hit.text) for hit in searcher.search("text", 2)}
    assert hits == {"0": ("", "plain text"), "1": ("title", "and text")}


def test_language_keeps_to_its_passages(road):
    searcher = Searcher.open(road / "index")
    assert {hit.language for hit in searcher.search("coffee", 2, language="en")} == {"en"}
    with pytest.raises(UsageError, match="only 1 passages"):
        searcher.search("coffee", 2, language="ja")
    with pytest.raises(UsageError, match="there are: ar, en, ja, sw"):
        searcher.search("coffee", 1, language="fi")


@pytest.mark.parametrize("query", ["", "  \n", "\u3000", "\u200b"])
def test_an_empty_query_is_a_usage_error(road, query):
    with pytest.raises(UsageError, match="empty"):
        Searcher.open(road / "index").search(query)
    with pytest.raises(UsageError, match="empty"):
        search_command(SearchSettings(index=str(road / "index"), query=query))


@pytest.mark.parametrize(
    ("query", "said"),
    [("h\udcffello", "half of a surrogate"), ("\ud83d", "half of a surrogate"), (None, "is None; expected a text")],
)
def test_a_query_that_is_no_text_is_a_usage_error(road, query, said):
    searcher = Searcher.open(road / "index")
    for search in (searcher.search, searcher.search_lexical):
        with pytest.raises(UsageError, match=f"^the query .*{said}"):
            search(query, 1)
    with pytest.raises(UsageError, match=f"^query 1 .*{said}"):
        searcher.search_many(["coffee", query], 1)


@pytest.mark.parametrize("by", ["dense", "bm25"])
def test_a_query_that_is_no_text_is_refused_before_anything_is_opened(by):
    with pytest.raises(UsageError, match="half of a surrogate"):
        search_command(SearchSettings(index="nowhere", query="h\udcffello", by=by))


@pytest.mark.parametrize(("k", "said"), [(6, "only 5 passages"), (0, "at least 1")])
def test_k_that_cannot_be_answered(road, k, said):
    with pytest.raises(UsageError, match=said):
        Searcher.open(road / "index").search("coffee", k)


def test_a_list_is_needed_for_many(road):
    with pytest.raises(UsageError, match="list of texts"):
        Searcher.open(road / "index").search_many("coffee", 1)


def test_another_encoder_is_refused(road, tokenizer, tmp_path):
    other = make_encoder(tokenizer, 2)
    with pytest.raises(ArtifactError, match="another encoder"):
        Searcher.open(road / "index", other)
    save(other, tmp_path / "other")
    with pytest.raises(ArtifactError, match="another encoder"):
        Searcher.open(road / "index", checkpoint=str(tmp_path / "other"))


def test_one_changed_weight_or_contract_is_another_encoder(encoder, tokenizer):
    same, weight = make_encoder(tokenizer, 1), make_encoder(tokenizer, 1)
    assert encoder_fingerprint(same) == encoder_fingerprint(encoder)
    with torch.no_grad():
        next(weight.parameters())[0, 0] += 1e-3
    assert encoder_fingerprint(weight) != encoder_fingerprint(encoder)
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66)
    plain, cls = Encoder.random(shape, tokenizer), Encoder.random(shape, tokenizer, pooling="cls")
    assert encoder_fingerprint(plain) != encoder_fingerprint(cls)


def test_a_moved_checkpoint_is_asked_for_and_found(road, tmp_path):
    (road / "model").rename(tmp_path / "moved")
    try:
        with pytest.raises(UsageError, match="--checkpoint"):
            Searcher.open(road / "index")
        assert len(Searcher.open(road / "index", checkpoint=str(tmp_path / "moved"))) == 5
    finally:
        (tmp_path / "moved").rename(road / "model")


def test_embedding_in_small_chunks_changes_nothing(road, encoder):
    embed(settings_for(road, out=road / "chunked", batch_tokens=16, shard_passages=1))
    one, two = Vectors.open(road / "vectors"), Vectors.open(road / "chunked")
    np.testing.assert_allclose(one.vectors, two.vectors, atol=1e-5)
    assert list(one.passages) == list(two.passages) == PASSAGES
    assert one.encoder["fingerprint"] == encoder_fingerprint(encoder)


def test_same_inputs_are_kept_and_others_refused(road, tokenizer, tmp_path, capsys):
    before = sha256(road / "vectors/manifest.json")
    embed(settings_for(road))
    assert "kept" in capsys.readouterr().err
    save(make_encoder(tokenizer, 2), tmp_path / "other")
    with pytest.raises(ArtifactError, match="made from other inputs"):
        embed(settings_for(road, checkpoint=tmp_path / "other"))
    assert sha256(road / "vectors/manifest.json") == before


def test_an_embedding_that_fails_leaves_nothing(road, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Encoder, "stream", fail)
    with pytest.raises(RuntimeError):
        embed(settings_for(road, out=tmp_path / "vectors"))
    assert not list(tmp_path.iterdir())


def test_a_vector_that_is_not_finite_is_named(road, tmp_path, monkeypatch):
    real = Encoder.stream

    def damaged(self, passages, **options):
        for chunk, rows in real(self, passages, **options):
            rows[[passage.id == "en1" for passage in chunk], 1] = np.nan
            yield chunk, rows

    monkeypatch.setattr(Encoder, "stream", damaged)
    with pytest.raises(ArtifactError, match="'en1' is not finite"):
        embed(settings_for(road, out=tmp_path / "vectors"))
    assert not (tmp_path / "vectors").exists()


@pytest.mark.parametrize("out", ["model", "corpus", "corpus/vectors", "."])
def test_checkpoint_and_corpus_are_never_the_output(road, out):
    before = {path: path.read_bytes() for path in sorted(road.rglob("*")) if path.is_file()}
    with pytest.raises(UsageError, match=r"the output .* (is|holds|lies in) the input"):
        embed(settings_for(road, out=road / out, overwrite=True))
    assert {path: path.read_bytes() for path in sorted(road.rglob("*")) if path.is_file()} == before


def test_an_index_is_never_replaced_by_vectors(road):
    with pytest.raises(ArtifactError, match="index holds something else than vectors"):
        embed(settings_for(road, out=road / "index", overwrite=True))
    assert open_artifact(road / "index", "index").meta["count"] == len(PASSAGES)


def test_missing_corpus(road, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        embed(settings_for(road, corpus=tmp_path / "nowhere", out=tmp_path / "vectors"))


def test_bm25_beside_it(road, tmp_path):
    searcher = Searcher.open_lexical(road / "index")
    assert [hit.id for hit in searcher.search_lexical("Fleming", 3)] == ["en1"]
    with pytest.raises(UsageError, match="BM25 alone"):
        searcher.search("Fleming", 1)
    build_index(IndexSettings(vectors=str(road / "vectors"), out=str(tmp_path / "dense"), lexical=False))
    assert "bm25/vocab.index.json" not in open_artifact(tmp_path / "dense", "index").files
    with pytest.raises(ArtifactError, match="without BM25"):
        Searcher.open_lexical(tmp_path / "dense")


def test_the_command_shows_what_it_found(road, capsys):
    hits = search_command(SearchSettings(index=str(road / "index"), query="ما هي القهوة", k=5))
    shown = capsys.readouterr().out
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert f"{RIGHT_TO_LEFT}القهوة مشروب يصنع من حبوب محمصة{POP}" in shown
    assert f"{FIRST_STRONG}コーヒーは焙煎した豆から作る飲み物です。{POP}" in shown
    assert shown.startswith(f"{FIRST_STRONG}ما هي القهوة{POP}")
    search_command(SearchSettings(index=str(road / "index"), query="неизвестно", by="bm25"))
    assert "no passage shares a word" in capsys.readouterr().out


def test_every_isolate_is_closed_on_its_line_and_escapes_are_gone(road):
    long = Passage("x", "\x1b[31mred", "كلمة English " * 60 + "\x1b]0;title\x07", "ar")
    searcher = Searcher.from_passages(make_encoder(Tokenizer.load(road / "model"), 1), [long])
    shown = show("a\nb", searcher.search("q", 1), lines=0, width=40)
    for line in shown.splitlines():
        assert line.count(RIGHT_TO_LEFT) + line.count(FIRST_STRONG) == line.count(POP)
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_wrapping_counts_cells():
    from rich.cells import cell_len

    text = "焙煎した豆から作る飲み物" * 5 + " and words after it"
    lines = wrap(text, 20)
    assert max(map(cell_len, lines)) <= 20
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_an_open_searcher_outlives_a_rebuild(road, tmp_path):
    """The folder is replaced by one with other passages while the old one is open: it goes on answering as before."""
    corpus, place = tmp_path / "corpus.en.jsonl", tmp_path / "index"
    for number, texts in enumerate((["salt lakes of the desert", "a bridge"], ["one", "two much longer than before"])):
        rows = [{"_id": str(row), "title": "", "text": text} for row, text in enumerate(texts)]
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        embed(settings_for(road, corpus=corpus, out=tmp_path / f"vectors{number}"))
        build_index(IndexSettings(vectors=str(tmp_path / f"vectors{number}"), out=str(place), overwrite=True))
        if number == 0:
            searcher = Searcher.open(place)
            before = {hit.text for hit in searcher.search("bridge", k=2)}
    assert {hit.text for hit in searcher.search("bridge", k=2)} == before == {"salt lakes of the desert", "a bridge"}
