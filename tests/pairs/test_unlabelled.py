"""Unlabelled pairs on shards whose tokens tell where they come from."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.errors import ArtifactError, DataError, SettingsError
from mcontriever.pairs import UnlabelledPairs, UnlabelledSettings, unlabelled

# language: (length, article) of each document. Token ids count up through all of it, so that a token names its place.
DOCUMENTS = {
    "en": [(30, 0), (100, 1), (9, -1), (300, 2), (64, -1)],
    "sw": [(40, 1), (50, 0), (33, -1)],
    "ja": [(70, 1), (20, 1), (128, 3)],
}
FIRST_TOKEN = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "shards", DOCUMENTS)


def make(path, documents):
    texts = ["coffee tea milk water bread"] * 3
    tokenizer = Tokenizer.train(texts, 20)
    token = FIRST_TOKEN
    with writing(path, "token shards") as draft:
        for language, rows in documents.items():
            with LanguageWriter(draft.folder, language, 5000) as writer:
                for length, article in rows:
                    writer.append([np.arange(token, token + length)], [article])
                    token += length
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {"languages": list(documents), "vocab_size": 5000, "articles": 4}
        draft.meta |= {"tokenizer": tokenizer.fingerprint}
    return Shards.open(path)


def places(documents=DOCUMENTS):
    """Token id to (language, document)."""
    table, token = {}, FIRST_TOKEN
    for language, rows in documents.items():
        for number, (length, _) in enumerate(rows):
            table.update({token + place: (language, number, place) for place in range(length)})
            token += length
    return table


PLACES = places()


def rows_of(packed):
    rows = [row.tolist() for row in packed.split()]
    assert all((row[0], row[-1]) == (0, 2) for row in rows)
    return [row[1:-1] for row in rows]


def source(row):
    """The one (language, document) all tokens of a row come from."""
    found = {PLACES[token][:2] for token in row}
    assert len(found) == 1
    return found.pop()


def pairs(shards, seed=1, **changes):
    return UnlabelledPairs(shards, UnlabelledSettings(**{"window": 32, "delete": 0.0} | changes), seed)


def test_both_crops_come_from_one_window_of_one_document(shards):
    made = pairs(shards)
    batch = made.batch(0, np.arange(600), 600)
    languages = [made.languages[number] for number in batch.language]
    assert all(abs(count - 200) < 40 for count in batch.language_counts().values())
    windows = set()
    for query, passage, language in zip(rows_of(batch.query), rows_of(batch.passage), languages, strict=True):
        assert source(query) == source(passage)
        assert source(query)[0] == language
        for row in (query, passage):
            assert row == list(range(row[0], row[0] + len(row)))
        length = DOCUMENTS[language][source(query)[1]][0]
        parts = -(-length // 32)
        window = {PLACES[token][2] for token in (*query, *passage)}
        inside = [
            part for part in range(parts) if window <= set(range(length * part // parts, length * (part + 1) // parts))
        ]
        assert len(inside) == 1
        windows.add((*source(query), inside[0]))
    everything = {
        (language, number, part)
        for language, rows in DOCUMENTS.items()
        for number, (length, _) in enumerate(rows)
        for part in range(-(-length // 32))
    }
    assert windows == everything
    assert made.windows == [1 + 4 + 1 + 10 + 2, 2 + 2 + 2, 3 + 1 + 4]


def test_groups_are_articles_or_documents(shards):
    batch = pairs(shards).batch(0, np.arange(400), 400)
    by_source = {}
    for row, group in zip(rows_of(batch.query), batch.group.tolist(), strict=True):
        assert by_source.setdefault(source(row), group) == group
    named = {key: DOCUMENTS[key[0]][key[1]][1] for key in by_source}
    assert len(by_source) == 11
    for key, article in named.items():
        if article >= 0:
            assert by_source[key] == article
    without = [by_source[key] for key, article in named.items() if article < 0]
    assert len(set(without)) == len(without) == 3
    assert min(without) >= 4


def test_comparable_pairs_come_from_another_version_of_the_article(shards):
    batch = pairs(shards, comparable=0.5).batch(0, np.arange(2000), 2000)
    crossed, could, chosen = 0, 0, set()
    for query, passage, group in zip(rows_of(batch.query), rows_of(batch.passage), batch.group.tolist(), strict=True):
        here, there = source(query), source(passage)
        could += group in (0, 1)
        if here != there:
            crossed += 1
            assert here[0] != there[0]
            assert DOCUMENTS[here[0]][here[1]][1] == DOCUMENTS[there[0]][there[1]][1] == group
            chosen.add((here, there))
    assert abs(crossed / could - 0.5) < 0.06
    versions = {0: [("en", 0), ("sw", 1)], 1: [("en", 1), ("sw", 0), ("ja", 0), ("ja", 1)]}
    assert chosen == {
        (one, other) for group in versions.values() for one in group for other in group if one[0] != other[0]
    }


def test_a_language_that_is_left_out_gives_no_passage_either(shards):
    made = pairs(shards, comparable=1.0, weights={"en": 1.0, "sw": 1.0, "ja": 0.0})
    batch = made.batch(0, np.arange(500), 500)
    sources = {
        (source(query)[0], source(passage)[0])
        for query, passage in zip(rows_of(batch.query), rows_of(batch.passage), strict=True)
    }
    assert sources == {("en", "sw"), ("sw", "en"), ("en", "en"), ("sw", "sw")}  # alone: no other version
    with pytest.raises(DataError, match="no article is there in two languages"):
        pairs(shards, comparable=1.0, weights={"en": 1.0, "sw": 0.0, "ja": 0.0})


def equal(first, second):
    for one, other in ((first.query, second.query), (first.passage, second.passage)):
        torch.testing.assert_close(one.ids, other.ids, rtol=0, atol=0)
        assert one.lengths.tolist() == other.lengths.tolist()
    assert first.group.tolist() == second.group.tolist()
    assert first.language.tolist() == second.language.tolist()


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**63))
@settings(max_examples=20, deadline=None)
def test_ranks_together_see_the_same_batch_whatever_their_number(shards, step, world, seed):
    changes = {"delete": 0.2, "comparable": 0.5, "exponent": 0.5}
    whole = pairs(shards, seed, **changes).batch(step, np.arange(16), 16)
    rows = list(zip(rows_of(whole.query), rows_of(whole.passage), whole.group.tolist(), strict=True))
    for rank in range(world):
        part = pairs(shards, seed, **changes).batch(step, np.arange(rank, 16, world), 16)
        seen = list(zip(rows_of(part.query), rows_of(part.passage), part.group.tolist(), strict=True))
        assert seen == rows[rank::world]


def test_same_seed_same_batch_other_seed_other_batch(shards):
    equal(pairs(shards, 5).batch(3, np.arange(8), 8), pairs(shards, 5).batch(3, np.arange(8), 8))
    ids = [pairs(shards, seed).batch(3, np.arange(8), 8).query.ids.tolist() for seed in (5, 6)]
    assert ids[0] != ids[1]


def test_threads_draw_what_one_thread_draws(shards, monkeypatch):
    """A guard draws a bad step again, with the very samples that the next steps are being made of."""
    monkeypatch.setattr(unlabelled, "_AHEAD", 16)  # two steps at once, so that draws of others take their place
    expected = [pairs(shards).batch(step, np.arange(8), 8) for step in range(24)]
    shared, steps = pairs(shards), [np.random.default_rng(seed).integers(0, 24, 60).tolist() for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(lambda mine: [shared.batch(step, np.arange(8), 8) for step in mine], steps))
    finally:
        sys.setswitchinterval(interval)
    for mine, batches in zip(steps, drawn, strict=True):
        for step, batch in zip(mine, batches, strict=True):
            equal(batch, expected[step])


def test_tokens_are_deleted_independently_in_both_views(shards):
    changes = {"delete": 0.5, "crop_min": 1.0, "crop_max": 1.0}
    batch = pairs(shards, **changes).batch(0, np.arange(300), 300)
    both = [(set(q), set(p)) for q, p in zip(rows_of(batch.query), rows_of(batch.passage), strict=True)]
    whole = pairs(shards, **changes | {"delete": 0.0}).batch(0, np.arange(300), 300)
    total = len(whole.query.ids) - 600
    assert abs(sum(len(query) for query, _ in both) / total - 0.5) < 0.03
    assert abs(sum(len(query & passage) for query, passage in both) / total - 0.25) < 0.03


def test_comparable_without_articles_in_two_languages_is_an_error(tmp_path):
    lonely = make(tmp_path / "lonely", {"en": [(20, 0), (20, 1)], "sw": [(20, 2), (20, -1)]})
    with pytest.raises(DataError, match="comparable is 0.5, but no article is there in two languages"):
        pairs(lonely, comparable=0.5)
    bare = make(tmp_path / "bare", {"en": [(20, -1)]})
    with pytest.raises(DataError, match="no article is there in two languages"):
        pairs(bare, comparable=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 0},
        {"crop_min": 0.0},
        {"crop_max": 1.1},
        {"crop_min": 0.6, "crop_max": 0.5},
        {"delete": 1.0},
        {"comparable": -0.1},
        {"exponent": -1.0},
    ],
)
def test_settings_out_of_range(changes):
    with pytest.raises(SettingsError, match=next(iter(changes))):
        UnlabelledSettings(**changes)


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    made = make(tmp_path / "shards", {"en": [(20, 0)]})
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["meta"]["tokenizer"] = "0" * 64
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="its tokenizer gives other ids"):
        Shards.open(made.path).tokenizer()
