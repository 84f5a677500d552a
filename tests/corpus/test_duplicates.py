"""Duplicates: the same ones are found as by comparing every pair, also when the keys do not fit into memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.corpus import duplicates as module
from mcontriever.corpus.duplicates import Signatures, exact_key

ALPHABETS = {
    "words": " abcdefghijklmnopqrstuvwxyz",
    "thai": "กขคงจฉชซญณดตถทนบปผพฟมยรลวสหอะาิีุูเแโใไ่้",
    "chinese": "".join(map(chr, range(0x4E00, 0x4F00))),
}


def duplicates(*given, **options):
    return module.duplicates(*given, **options).repeated


def keys(texts):
    return np.frombuffer(b"".join(map(exact_key, texts)), np.uint64).reshape(-1, 2)


def shingles(text):
    text = " ".join(text.casefold().split())
    return {text[at : at + 5] for at in range(max(1, len(text) - 4))}


def jaccard(one, other):
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def repeats_an_earlier_one(texts, threshold):
    sets = [shingles(text) for text in texts]
    similar = [[len(one & other) / len(one | other) for one in sets[:at]] for at, other in enumerate(sets)]
    return [any(value >= threshold for value in earlier) for earlier in similar]


def corpus(alphabet, seed=0):
    """40 texts, then 20 of them again with a few characters changed, in mixed order."""
    random = np.random.default_rng(seed)
    letters = list(ALPHABETS[alphabet])
    texts = ["".join(random.choice(letters, random.integers(200, 400))) for _ in range(40)]
    for text in texts[:20]:
        changed = list(text)
        for place in random.integers(0, len(text), random.integers(0, 3)):
            changed[place] = random.choice(letters)
        texts.append("".join(changed).upper())
    return [texts[number] for number in random.permutation(60)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_SORTED", 8)
    monkeypatch.setattr(module, "_ROWS", 7)


def test_exact_keys_fold_white_space_and_nothing_else():
    assert len(exact_key("")) == 16
    assert exact_key(" a\n b\t") == exact_key("a b")
    assert len({exact_key(text) for text in ("a b", "A b", "ab", "a b.", "á b")}) == 5


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.sampled_from([2, 2**22]))
def test_exact_duplicates_are_those_seen_before(numbers, in_memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SORTED", in_memory)
        found = duplicates(keys(map(str, numbers)), None, 1.0)
    assert found.tolist() == [number in numbers[:at] for at, number in enumerate(numbers)]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_near_duplicates_are_those_of_comparing_every_pair(alphabet, tmp_path):
    pytest.importorskip("rensa")
    texts = corpus(alphabet)
    expected = repeats_an_earlier_one(texts, 0.8)
    assert sum(expected) == 20
    signatures = Signatures().of_many(texts)
    assert duplicates(None, signatures, 0.8, scratch=tmp_path).tolist() == expected
    assert duplicates(keys(texts), signatures, 0.8, scratch=tmp_path).tolist() == expected
    assert list(tmp_path.iterdir()) == []


def test_what_is_found_does_not_depend_on_memory(small_blocks, tmp_path):
    pytest.importorskip("rensa")
    texts = corpus("words")
    signatures = np.memmap(tmp_path / "signatures", np.uint32, "w+", shape=(60, 128))
    signatures[:] = Signatures().of_many(texts)
    assert duplicates(keys(texts), signatures, 0.8, scratch=tmp_path).tolist() == repeats_an_earlier_one(texts, 0.8)


def test_signatures_are_one_a_text_and_fold_case_and_white_space():
    pytest.importorskip("rensa")
    signatures, texts = Signatures(64), ["Some text here", "some  TEXT\nhere", "other words", "ab", ""]
    rows = signatures.of_many(texts)
    assert rows.shape == (5, 64)
    assert rows.dtype == np.uint32
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(signatures.of(text), row)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert len({row.tobytes() for row in rows}) == 4
    assert signatures.of_many([]).shape == (0, 64)


@pytest.mark.parametrize("changes", [0, 2, 6, 20, 60])
def test_the_share_of_equal_values_estimates_the_jaccard_similarity(changes):
    pytest.importorskip("rensa")
    random = np.random.default_rng(changes)
    text = random.choice(list(ALPHABETS["words"]), 600)
    other = text.copy()
    other[random.choice(600, changes, replace=False)] = "é"
    one, two = "".join(text), "".join(other)
    first, second = Signatures(512).of_many([one, two])
    assert (first == second).mean() == pytest.approx(jaccard(one, two), abs=0.07)  # 3 standard deviations


def test_those_that_meet_without_being_alike_stay(monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 5)
    table = np.random.default_rng(0).integers(0, 2**32, (50, 128), dtype=np.uint32)
    table[:, :6] = 7  # all meet in the first band
    assert not duplicates(None, table, 0.8).any()
    table[49] = table[2]
    assert np.flatnonzero(duplicates(None, table, 0.8)).tolist() == [49]


def test_what_too_many_others_kept_from_being_compared_is_counted(monkeypatch):
    table = np.random.default_rng(0).integers(0, 2**32, (50, 128), dtype=np.uint32)
    table[:, :6] = 7  # all meet in the first band
    for rounds, left in ((256, []), (49, []), (48, [49]), (5, range(6, 50))):
        monkeypatch.setattr(module, "_ROUNDS", rounds)
        found = module.duplicates(None, table, 0.8)
        assert not found.repeated.any()
        assert np.flatnonzero(found.uncompared).tolist() == list(left)
    table[49] = table[40]  # which the other bands tell
    found = module.duplicates(None, table, 0.8)
    assert np.flatnonzero(found.repeated).tolist() == [49]
    assert np.flatnonzero(found.uncompared).tolist() == list(range(6, 49))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_pairs_at_the_threshold_meet_in_some_band(threshold):
    bands = module._bands(128, threshold)
    width = bands[0].stop
    assert all(band.stop - band.start == width for band in bands)
    assert bands[-1].stop <= 128
    assert (1 - threshold**width) ** len(bands) <= 0.01


def test_parts_hold_about_what_fits_and_share_no_key(monkeypatch):
    monkeypatch.setattr(module, "_SORTED", 256)
    table = keys(str(number % 3000) for number in range(4096))
    parts = list(module._sorted_keys(np.zeros(4096, bool), table, lambda rows: rows[:, 0], None))
    assert max(len(part) for part, _ in parts) < 2 * 256
    assert len(np.concatenate([np.unique(part) for part, _ in parts])) == 3000
    assert sorted(np.concatenate([rows for _, rows in parts])) == list(range(4096))


def test_nothing_has_no_duplicates():
    assert duplicates(keys([]), np.zeros((0, 128), np.uint32), 0.8).shape == (0,)
    assert duplicates(None, None, 0.8).shape == (0,)
