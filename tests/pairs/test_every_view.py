"""What holds for every view: purity, one document, an epoch in full, room for the longest."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.errors import DataError, SettingsError
from mcontriever.pairs import UnlabelledPairs, UnlabelledSettings, noise, unlabelled
from mcontriever.settings import build

VIEWS = ("crop", "ict", "neighbour", "title", "spans", "salient")
SIZES = {"en": [200, 64, 17, 31, 90], "sw": [40, 33, 25, 300], "th": [130, 18]}
OWN = 30  # tokens of one document alone, so that its views tell where they come from; every fifth ends a sentence


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"), SIZES)


def make(folder, sizes):
    count = sum(map(len, sizes.values()))
    (folder / "vocab.txt").write_text(
        "\n".join(
            (
                *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
                *(f"d{number}w{word}{'.' * (word % 5 == 0)}" for number in range(count) for word in range(OWN)),
            )
        )
    )
    tokenizer, random, number = Tokenizer.load(folder / "vocab.txt"), np.random.default_rng(0), 0
    with writing(folder / "shards", "token shards") as draft:
        for language, lengths in sizes.items():
            with LanguageWriter(draft.folder, language, tokenizer.vocab_size) as writer:
                for length in lengths:
                    writer.append([5 + number * OWN + random.integers(0, OWN, length)], [-1])
                    number += 1
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {"languages": list(sizes), "vocab_size": tokenizer.vocab_size, "articles": 0}
        draft.meta |= {"tokenizer": tokenizer.fingerprint}
    return Shards.open(folder / "shards")


def pairs(shards, seed=1, ahead=64, **changes):
    with patch.object(noise, "_TAPE_LENGTH", 4096), patch.object(unlabelled, "_AHEAD", ahead):
        return UnlabelledPairs(shards, UnlabelledSettings(**{"window": 32, "delete": 0.0} | changes), seed)


def rows(batch):
    views = ([row.tolist() for row in packed.split()] for packed in (batch.query, batch.passage))
    return list(zip(*views, batch.group.tolist(), batch.language.tolist(), strict=True))


WITHOUT_SW = {"en": 1.0, "sw": 0.0, "th": 0.4}
NOISES = st.sampled_from([{}, {"delete": 0.3}, {"delete": 0.1, "replace": 0.1, "mask": 0.1, "shuffle": 0.2}])
MIXES = st.sampled_from(
    [{}, {"exponent": 0.7}, {"weights": {"en": 1.0, "sw": 5.0, "th": 0.1}}, {"unmixed": True}, {"weights": WITHOUT_SW}]
)


@pytest.mark.parametrize("view", VIEWS)
@given(step=st.integers(0, 10**9), world=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_batch_is_a_function_of_seed_and_step_alone(shards, view, step, world, seed, data):
    batch = 8
    changes = {"view": view} | data.draw(NOISES) | data.draw(MIXES)
    if view != "title":
        changes["window_borders"] = data.draw(st.sampled_from(["document", "corpus"]))
    if "unmixed" in changes:
        changes["window"] = 16  # so that each language has a batch of windows
        if view == "salient":
            changes["salient_length"] = 8
    whole = rows(pairs(shards, seed, ahead=1, **changes).batch(step, np.arange(batch), batch))
    for rank in range(world):
        resumed = pairs(shards, seed, ahead=data.draw(st.sampled_from([1, 8, 20, 64])), **changes)
        mine = np.arange(rank, batch, world)
        if data.draw(st.booleans()):
            resumed.batch(max(step - 1, 0), mine, batch)
        assert rows(resumed.batch(step, mine, batch)) == whole[rank::world]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("unmixed", [False, True])
def test_every_window_comes_once_an_epoch_and_views_stay_in_their_document(shards, view, unmixed):
    changes = {"window": 16, "view": view, "unmixed": unmixed, "crop_min": 1.0, "crop_max": 1.0}
    if view == "salient":
        changes["salient_length"] = 8
    if view == "neighbour":
        changes |= {"crop_min": 0.5, "crop_max": 0.5}
    made = pairs(shards, **changes)
    batch, counts = 4, np.zeros(3, dtype=int)
    seen = {language: [] for language in range(3)}
    with patch.object(made._windows, "locate", wraps=made._windows.locate) as located:
        for step in range(400):
            drawn = made.batch(step, np.arange(batch), batch)
            languages = drawn.language.tolist()
            assert len(set(languages)) == 1 or not unmixed
            counts += np.bincount(languages, minlength=3)
            for query, passage, group, _ in rows(drawn):
                assert {(token - 5) // OWN for token in (*query[1:-1], *passage[1:-1])} == {group}
                assert len(query) > 2 < len(passage)
                assert max(len(query), len(passage)) <= made.settings.longest
        for call in located.call_args_list:
            for language, window in zip(call.args[0].tolist(), call.args[1].tolist(), strict=True):
                seen[language].append(window)
    for language, size in enumerate(made.windows):
        epochs = len(seen[language]) // size
        assert epochs >= 2
        for epoch in range(epochs):
            assert sorted(seen[language][epoch * size : (epoch + 1) * size]) == list(range(size))
    if not unmixed:
        assert counts.max() - counts.min() < 200


def test_windows_that_cross_borders_are_256_tokens_from_anywhere(shards):
    made = pairs(shards, window_borders="corpus", crop_min=1.0, crop_max=1.0)
    tokens = [shards.tokens(language).tolist() for language in shards.languages]
    assert made.windows == [len(text) // 32 - 1 for text in tokens]
    starts, crossing = set(), 0
    for query, passage, group, language in rows(made.batch(0, np.arange(600), 600)):
        assert query == passage
        content = query[1:-1]
        assert len(content) == 32
        start = next(at for at in range(len(tokens[language])) if tokens[language][at : at + 32] == content)
        assert group == (content[0] - 5) // OWN
        starts.add((language, start))
        crossing += len({(token - 5) // OWN for token in content}) > 1
    assert len(starts) > 300
    assert crossing > 100


def test_explicit_weights_decide_how_often_each_language_comes(shards):
    made = pairs(shards, weights={"th": 3.0, "en": 1.0, "sw": 4.0})
    counts = made.batch(0, np.arange(4096), 4096).language_counts()
    assert {name: round(count / 512) for name, count in counts.items()} == {"en": 1, "sw": 4, "th": 3}


def test_weights_must_name_the_languages_of_the_shards(shards):
    with pytest.raises(SettingsError, match="the shards have no 'ent'; did you mean 'en'?"):
        pairs(shards, weights={"ent": 1.0, "sw": 1.0, "th": 1.0})
    with pytest.raises(SettingsError, match="weights: none for sw, th; give one for each language"):
        pairs(shards, weights={"en": 1.0})


def test_weights_are_read_from_a_recipe(tmp_path):
    (tmp_path / "r.toml").write_text("[weights]\nen = 2\nsw = 0.5\n")
    assert build(UnlabelledSettings, tmp_path / "r.toml").weights == {"en": 2.0, "sw": 0.5}
    (tmp_path / "r.toml").write_text("weights = {en = -1.0}\n")
    with pytest.raises(SettingsError, match=r"weights\.en must lie in \[0, 1000000000\]"):
        build(UnlabelledSettings, tmp_path / "r.toml")


@pytest.mark.parametrize("unmixed", [False, True])
def test_a_language_of_weight_0_is_left_out_and_told(tmp_path, unmixed):
    some = make(tmp_path, {"en": [200, 64], "sw": [4], "th": [130, 18]})  # not a window for this view in Swahili
    with pytest.raises(DataError, match=r"'sw' has no document over 4 tokens, .*leave it out \(unlabelled.weights 0,"):
        pairs(some, view="ict", window=16)
    made = pairs(some, view="ict", window=16, weights=WITHOUT_SW, unmixed=unmixed)
    assert made.left_out() == "left out by unlabelled.weights 0: sw"
    assert made.total == made.windows[0] + made.windows[2] == 28
    made.require(10)
    with patch.object(made._windows, "locate", wraps=made._windows.locate) as located:
        counts = sum(np.bincount(made.batch(step, np.arange(5), 5).language, minlength=3) for step in range(200))
    assert counts[1] == 0
    assert counts[0] / counts[2] == pytest.approx(2.5, rel=0.2)
    drawn = np.concatenate([np.stack(call.args[:2], axis=1) for call in located.call_args_list])
    for language in (0, 2):
        seen, size = drawn[drawn[:, 0] == language, 1], made.windows[language]
        for epoch in range(len(seen) // size):
            assert sorted(seen[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


@pytest.mark.parametrize("view", ["spans", "salient"])
def test_statistics_do_not_need_a_language_that_is_left_out(tmp_path, view):
    some = make(tmp_path, {"en": [200, 64], "sw": [4], "th": [130, 18]})
    counts = pairs(some, view=view, weights=WITHOUT_SW).batch(0, np.arange(40), 40).language_counts()
    assert counts.keys() == {"en", "th"}


def test_batches_of_one_language_need_enough_of_each(shards):
    made = pairs(shards, unmixed=True)
    with pytest.raises(DataError, match="language 'th' has 6 windows of text, unlabelled.unmixed needs batch.size 8"):
        made.batch(0, np.arange(8), 8)
    made.require(6)


def test_an_empty_language_is_an_error(tmp_path):
    empty = make(tmp_path, {"en": [40], "sw": []})
    with pytest.raises(DataError, match="language 'sw' has no document over 0 tokens, expected one of 1 or more"):
        pairs(empty)
    with pytest.raises(DataError, match="language 'en' has 40 tokens, expected 64 for windows that cross borders"):
        pairs(empty, window_borders="corpus")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"view": "crops"}, "view must be one of crop, ict"),
        ({"view": "ict", "window": 12}, "window must lie in"),
        ({"view": "salient", "window": 16}, "salient_length must lie in"),
        ({"replace": 0.6, "mask": 0.5}, "unlabelled.replace"),
        ({"weights": {"en": 1.0}, "exponent": 0.5}, "give unlabelled.weights or unlabelled.exponent"),
        ({"view": "title", "window_borders": "corpus"}, "need whole documents"),
        ({"comparable": 0.5, "window_borders": "corpus"}, "need whole documents"),
        (
            {"view": "neighbour", "crop_max": 0.7},
            "crop_max must be at most 0.5 with unlabelled.view neighbour.*got 0.7",
        ),
        ({"ict_keep": 0.5}, "ict_keep is only for unlabelled.view = 'ict' or 'salient', got view = 'crop'"),
        ({"view": "ict", "span_keep": 0.1}, "span_keep is only for unlabelled.view = 'spans'"),
        ({"view": "spans", "salient_length": 8}, "salient_length is only for .*leave it out or set it to 16"),
        ({"salience": "some/model"}, "salience is only for unlabelled.view = 'salient'"),
        ({"view": "salient", "salience": ""}, "salience is empty; give bm25, or a checkpoint"),
        ({"weights": {"en": 0.0, "sw": 0.0}}, "weights are all 0"),
        ({"view": "ict", "comparable": 0.5}, "comparable goes with view crop, got view ict"),
    ],
)
def test_settings_that_do_not_fit_together(changes, complaint):
    with pytest.raises(SettingsError, match=complaint):
        UnlabelledSettings(**changes)
