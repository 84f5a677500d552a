"""Rows for which the text has not what the recipe asks are told one by one, documents without a window counted."""

import dataclasses

import numpy as np
import pytest
import torch
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.pairs import UnlabelledPairs, UnlabelledSettings

WORDS = "coffee tea milk water bread".split()
PLAIN = (
    "coffee tea milk water bread coffee milk bread tea water " + "tea " * 5
)  # ends no sentence, no three words again
# what each view that may fall back finds in the text: eight tokens of a sentence, a short first one, three words again
GOOD = {
    "ict": "tea " * 9 + "milk. " + "coffee " * 12,
    "title": "tea milk water bread. " + PLAIN * 2,
    "spans": "coffee tea milk water coffee tea milk bread",
}
BAD = {"ict": PLAIN, "title": PLAIN * 6, "spans": "coffee tea milk water bread coffee milk bread tea water"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".")))
    return Tokenizer.load(vocabulary)


def shards_of(path, tokenizer, documents, articles=None):
    """Shards of {language: texts}; `articles` numbers them alike."""
    with writing(path, "token shards") as draft:
        for language, texts in documents.items():
            with LanguageWriter(draft.folder, language, tokenizer.vocab_size) as writer:
                writer.append(tokenizer.encode(texts), articles[language] if articles else [-1] * len(texts))
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {
            "languages": list(documents),
            "vocab_size": tokenizer.vocab_size,
            "articles": 9 if articles else 0,
        }
        draft.meta |= {"tokenizer": tokenizer.fingerprint}
    return Shards.open(path)


def pairs(shards, **changes):
    return UnlabelledPairs(shards, UnlabelledSettings(**{"delete": 0.0} | changes), 3)


@pytest.mark.parametrize("view", GOOD)
def test_rows_of_documents_without_what_the_view_asks_are_told(tmp_path, tokenizer, view):
    shards = shards_of(tmp_path / "shards", tokenizer, {"en": [BAD[view], GOOD[view], BAD[view]], "sw": [GOOD[view]]})
    batch = pairs(shards, view=view).batch(0, np.arange(200), 200)
    documents = batch.group.tolist()
    assert batch.fallback.tolist() == [document in (0, 2) for document in documents]
    assert set(documents) == {0, 1, 2, 3}


@pytest.mark.parametrize("view", ["crop", "neighbour", "salient"])
def test_views_that_every_window_allows_tell_nothing(tmp_path, tokenizer, view):
    shards = shards_of(tmp_path / "shards", tokenizer, {"en": [PLAIN]})
    assert pairs(shards, view=view).batch(0, np.arange(4), 4).fallback is None


@pytest.mark.parametrize("often", [1.0, 0.5])
def test_pairs_that_should_have_been_of_two_languages_are_told(tmp_path, tokenizer, often):
    documents = {"en": [PLAIN] * 3, "sw": [PLAIN] * 2}
    shards = shards_of(tmp_path / "shards", tokenizer, documents, {"en": [0, 1, -1], "sw": [0, 2]})
    batch = pairs(shards, comparable=often).batch(0, np.arange(2000), 2000)
    alone = batch.group != 0
    assert not (batch.fallback & ~alone).any()
    assert float(batch.fallback[alone].float().mean()) == pytest.approx(often, abs=0.05)


def test_rows_keep_what_is_told_of_them(tmp_path, tokenizer):
    shards = shards_of(tmp_path / "shards", tokenizer, {"en": [BAD["ict"], GOOD["ict"]]})
    made = pairs(shards, view="ict")
    batch = made.batch(5, np.arange(40), 40)
    told = batch.fallback
    assert 0 < int(told.sum()) < 40
    assert batch.rows(7, 30).fallback.equal(told[7:30])
    assert torch.cat([part.fallback for part in batch.cut(4)]).equal(told)
    moved = batch.to("meta")
    assert moved.fallback.equal(told)
    assert dataclasses.replace(batch, fallback=None).rows(0, 2).to("cpu").fallback is None
    assert made.batch(5, np.arange(3, 40, 4), 40).fallback.equal(told[3::4])


def test_documents_too_short_for_the_view_are_counted_by_language(tmp_path, tokenizer):
    documents = {"en": [PLAIN, "tea milk", "milk " * 7, "milk " * 8], "sw": [PLAIN], "ta": [PLAIN, "tea"]}
    shards = shards_of(tmp_path / "shards", tokenizer, documents)
    for view in ("ict", "neighbour", "title", "spans", "salient"):
        assert pairs(shards, view=view).left_out() == f"too short for view {view} (under 8 tokens): 2 of en, 1 of ta"
    assert pairs(shards).left_out() == ""


def test_aligned_sentences_are_crops_of_a_whole_document_from_two_languages(tmp_path, tokenizer):
    generator, documents = np.random.default_rng(0), {}
    for language in ("en", "sw", "ta"):
        documents[language] = [" ".join(generator.choice(WORDS, size)) + "." for size in (1, 3, 30, 250)]
    articles = {"en": [0, 1, 2, 3], "sw": [3, 2, 1, 0], "ta": [2, 0, 3, 8]}
    shards = shards_of(tmp_path / "shards", tokenizer, documents, articles)
    made = pairs(shards, comparable=1.0, crop_min=1.0, crop_max=1.0)
    assert made.windows == [4, 4, 4]
    batch = made.batch(0, np.arange(600), 600)
    sentences = {
        (language, article): [tokenizer.bos, *tokenizer.encode([text])[0].tolist(), tokenizer.eos]
        for language, texts in documents.items()
        for article, text in zip(articles[language], texts, strict=True)
    }
    met = set()
    views = (side.split() for side in (batch.query, batch.passage))
    for query, passage, article, place, alone in zip(
        *views, batch.group.tolist(), batch.language.tolist(), batch.fallback.tolist(), strict=True
    ):
        language = batch.languages[place]
        assert query.tolist() == sentences[language, article]
        others = [name for name in sentences if name[1] == article and name[0] != language]
        answers = [name for name in others or [(language, article)] if sentences[name] == passage.tolist()]
        assert len(answers) == 1
        assert alone == (not others)
        met.add((language, *answers[0]))
    # each sentence with each of its translations, and the one without any with itself
    assert met == {
        (one, other, article)
        for one, article in sentences
        for other, same in sentences
        if same == article and (one != other or article == 8)
    }


def test_the_title_is_the_query_and_the_passage_comes_after_it(tmp_path, tokenizer):
    long = " ".join(["coffee"] * 90)
    texts = {
        "tea milk\n" + PLAIN: 2,  # no sentence ends here, and none need
        "milk\n" + GOOD["title"]: 1,  # not the first sentence
        GOOD["title"]: 0,
        BAD["title"]: 0,
        long + "\n" + PLAIN: 90,
        "bread tea\n" + PLAIN * 30: 2,  # several windows
    }
    for name, titles in (("old", None), ("new", list(texts.values()))):
        with writing(tmp_path / name, "token shards") as draft:
            with LanguageWriter(draft.folder, "en", tokenizer.vocab_size) as writer:
                writer.append(tokenizer.encode(list(texts)), [-1] * len(texts))
            if titles:
                np.save(draft.folder / "titles.en.npy", np.array(titles, np.uint32))
            tokenizer.save(draft.folder / "tokenizer")
            facts = {"vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.fingerprint, "articles": 0}
            draft.meta |= {"languages": ["en"], **facts}
    rows = [row.tolist() for row in tokenizer.encode(list(texts))]
    expected = [rows[0][:2], rows[1][:1], rows[2][:5], rows[3][:60], rows[4][:60], rows[5][:2]]
    batch = pairs(Shards.open(tmp_path / "new"), view="title").batch(0, np.arange(400), 400)
    starts = {group: set() for group in range(6)}
    for query, passage, group, cut in zip(
        batch.query.split(), batch.passage.split(), batch.group.tolist(), batch.fallback.tolist(), strict=True
    ):
        assert query.tolist()[1:-1] == expected[group]
        assert cut == (group in (3, 4))
        found, rest = passage.tolist()[1:-1], rows[group][len(expected[group]) :]
        places = [place for place in range(len(rest)) if rest[place : place + len(found)] == found]
        assert places
        starts[group].add(places[0])
    assert all(0 in places and len(places) > 2 for group, places in starts.items() if group < 3)
    old = pairs(Shards.open(tmp_path / "old"), view="title").batch(0, np.arange(400), 400)
    assert {group for group, cut in zip(old.group.tolist(), old.fallback.tolist(), strict=True) if cut} == {0, 3, 4, 5}
