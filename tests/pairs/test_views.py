"""Views against a naive oracle, one view at a time in plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.pairs import views
from mcontriever.pairs.counter import streams, words

quick = settings(max_examples=50, deadline=None)
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=12).filter(lambda lengths: len(lengths) % 2 == 0)


@given(st.integers(1, 300), st.floats(0, 0.999999), st.floats(0, 0.999999), st.floats(0.01, 1), st.floats(0, 1))
@quick
def test_crops_lie_inside_and_keep_their_ratio(size, for_length, for_start, low, spread):
    high = low + (1 - low) * spread
    start, length = views.crop(np.array([size]), low, high, np.array([for_length]), np.array([for_start]))
    assert 0 <= start[0] <= start[0] + length[0] <= size
    assert length[0] >= min(size, views.LEAST_TOKENS)
    if size * low >= views.LEAST_TOKENS:
        assert size * low - 1 <= length[0] <= size * high + 1e-9


def test_crops_reach_both_ends():
    sizes = np.full(2, 100)
    start, length = views.crop(sizes, 0.1, 0.5, np.array([0.0, 0.9999]), np.array([0.0, 0.99999]))
    assert start.tolist() == [0, 51]
    assert length.tolist() == [10, 49]


@given(LENGTHS, st.floats(0, 0.99), st.integers(0, 100), st.randoms(use_true_random=False))
@quick
def test_deleting_and_wrapping_equal_a_plain_loop(lengths, delete, seed, random):
    starts = [random.randrange(1000) for _ in lengths]
    order = list(range(len(lengths)))
    random.shuffle(order)
    keys = streams(seed, np.arange(len(lengths)))
    text = np.arange(2000, dtype=np.uint16)

    source = views.positions(np.array(starts), np.array(lengths))
    kept = views.keep(keys, np.array(lengths), delete)
    sizes = np.add.reduceat(kept, np.cumsum(lengths) - lengths, dtype=np.int64)
    query, passage = views.wrap(text[source][kept], sizes, np.array(order), 7000, 7001)

    expected = [[] for _ in lengths]
    for view, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        stays = [int(words(keys[view], place)[0]) / 2**64 >= delete for place in range(length)]
        if not any(stays):
            stays[0] = True
        expected[order[view]] = [7000, *(start + place for place in range(length) if stays[place]), 7001]
    half = len(lengths) // 2
    assert [row.tolist() for row in query.split()] == expected[:half]
    assert [row.tolist() for row in passage.split()] == expected[half:]


def test_as_many_tokens_are_deleted_as_asked():
    kept = views.keep(streams(0, np.arange(2000)), np.full(2000, 100), 0.1)
    assert abs(kept.mean() - 0.9) < 0.003
    assert views.keep(streams(0, np.arange(3)), np.array([5, 1, 3]), 0.0).all()
