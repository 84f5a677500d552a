"""Recurring spans against a plain search."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.pairs import recurring
from mcontriever.pairs.counter import streams

TEXTS = st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=25), min_size=1, max_size=5)


def find(texts, rarity=None, seed=0):
    tokens = np.concatenate([np.array(text) for text in texts])
    rarity = np.ones(len(tokens), dtype=np.float32) if rarity is None else rarity
    return recurring.find(tokens, np.array([len(text) for text in texts]), rarity, streams(seed, np.arange(len(texts))))


@given(TEXTS, st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_what_is_found_recurs_without_overlap(texts, seed):
    found = find(texts, seed=seed)
    for text, first, second, length in zip(texts, found.first, found.second, found.length, strict=True):
        # one place after the next where the same three tokens stand, as the search takes them
        places = {}
        for at in range(len(text) - 2):
            places.setdefault(tuple(text[at : at + 3]), []).append(at)
        there = {(a, b) for where in places.values() for a, b in pairwise(where) if b - a >= 3}
        assert bool(there) == bool(length)
        if length:
            assert (first, second) in there
            assert 3 <= length <= recurring.SPAN_TOKENS
            assert text[first : first + length] == text[second : second + length]
            assert first + length <= second
            more = length < recurring.SPAN_TOKENS and first + length < second and second + length < len(text)
            assert not more or text[first + length] != text[second + length]


def test_rare_spans_are_chosen_more_often():
    text = [1, 2, 3, 50, 4, 5, 6, 51, 1, 2, 3, 52, 4, 5, 6]
    rarity = np.where(np.isin(text, [1, 2, 3]), 3.0, 1.0).astype(np.float32)
    chosen = [int(find([text], rarity, seed).first[0]) for seed in range(600)]
    assert set(chosen) == {0, 4}
    assert abs(chosen.count(0) / 600 - 0.75) < 0.07
