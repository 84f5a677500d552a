"""Views against a naive oracle, one view at a time in plain Python."""

from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.pairs import noise, views
from mcontriever.pairs.counter import streams, words
from mcontriever.pairs.recurring import Recurring

quick = settings(max_examples=50, deadline=None)


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


def spans_of(view_spans, seed=0):
    """Views given as lists of (start, length), as the functions take them."""
    most = max(map(len, view_spans))
    padded = [[*spans, *[(0, 0)] * (most - len(spans))] for spans in view_spans]
    starts, lengths = np.array(padded).reshape(len(view_spans), most, 2).transpose(2, 0, 1)
    return views.Spans.of(starts, lengths, words(streams(seed, np.arange(len(view_spans)))[:, None], np.arange(most)))


VIEWS = st.lists(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 40)), min_size=1, max_size=3), min_size=1, max_size=9
)


@given(VIEWS)
@quick
def test_joined_views_are_their_spans_wrapped(view_spans):
    text = np.arange(10, 2000, dtype=np.uint16)
    packed = views.join(text, spans_of(view_spans), 7000, 7001, None)
    expected = [
        [7000, *(10 + at for start, size in spans for at in range(start, start + size)), 7001] for spans in view_spans
    ]
    assert [row.tolist() for row in packed.split()] == expected
    assert packed.ids.dtype == packed.lengths.dtype == torch.int64


@given(VIEWS, st.floats(0.01, 0.99), st.integers(0, 100))
@quick
def test_what_the_tape_deletes_is_left_out(view_spans, delete, seed):
    spans = spans_of(view_spans, seed)
    with patch.object(noise, "_TAPE_LENGTH", 4096):
        tape = noise.Tape(seed, delete, 40)
    packed = views.join(np.arange(10, 2000), spans, 7000, 7001, tape)
    stays = set(tape.kept.tolist())
    places, _, counts = tape.read(spans.bits, spans.lengths)
    reads = iter(zip(places.tolist(), counts.tolist(), strict=True))
    expected = []
    for parts in view_spans:
        expected.append([7000])
        for start, size in parts:
            place, count = next(reads)
            kept = [10 + start + at for at in range(size) if place + at in stays]
            assert kept[0] == 10 + start if count < len(kept) else kept  # the one kept of a span that loses all
            expected[-1] += kept[:count]
        expected[-1].append(7001)
    assert [row.tolist() for row in packed.split()] == expected


SIZES = st.lists(st.integers(views.LEAST_WINDOW, 300), min_size=1, max_size=8).map(np.array)


def chances(random, count):
    return np.array([random.random() for _ in range(count)])


@given(SIZES, st.randoms(use_true_random=False))
@quick
def test_neighbours_touch_and_lie_inside(sizes, random):
    wanted = [views.part(sizes, 0.1, 0.5, chances(random, len(sizes))) for _ in range(2)]
    swapped = chances(random, len(sizes)) < 0.5
    query, passage = views.neighbours(sizes, *wanted, chances(random, len(sizes)), swapped)
    for row, size in enumerate(sizes):
        spans = [(int(view[0][row, 0]), int(view[1][row, 0])) for view in (query, passage)]
        (start, length), (other, other_length) = reversed(spans) if swapped[row] else spans
        assert start >= 0
        assert start + length == other
        assert other + other_length <= size
        assert min(length, other_length) >= views.LEAST_TOKENS
        assert (length, other_length) == (wanted[0][row], wanted[1][row])


@given(SIZES, st.randoms(use_true_random=False))
@quick
def test_the_inverse_cloze_task_parts_the_window(sizes, random):
    starts, lengths = views.crop(sizes, 0.1, 0.5, chances(random, len(sizes)), chances(random, len(sizes)))
    stays = chances(random, len(sizes)) < 0.5
    query, passage = views.inverse_cloze(starts, lengths, sizes, stays)
    for row, size in enumerate(sizes):
        taken, left = tokens_of(query, row), tokens_of(passage, row)
        assert taken == list(range(starts[row], starts[row] + lengths[row]))
        assert left == [at for at in range(size) if stays[row] or at not in taken]


@given(st.randoms(use_true_random=False))
@quick
def test_spans_that_share_one_surround_it_and_do_not_meet(random):
    length = random.randrange(3, 12)
    first = random.randrange(0, 100)
    second = first + length + random.randrange(0, 100)
    size = second + length + random.randrange(0, 100)
    found = Recurring(np.array([first]), np.array([second]), np.array([length]))
    wanted = np.array([random.randrange(4, 200)]), np.array([random.randrange(4, 200)])
    stays, swapped = np.array([random.random() < 0.5]), np.array([random.random() < 0.5])
    query, passage = views.sharing(found, np.array([size]), wanted, chances(random, 2)[None], stays, swapped)
    own, other = (second, first) if swapped[0] else (first, second)
    taken, left = tokens_of(query, 0), tokens_of(passage, 0)
    assert set(range(other, other + length)) <= set(left)
    assert left == list(range(left[0], left[0] + len(left)))
    span = set(range(own, own + length))
    assert span <= set(taken) if stays[0] else span.isdisjoint(taken) or set(taken) == span
    whole = sorted(span | set(taken))
    assert whole == list(range(whole[0], whole[0] + len(whole)))
    assert not set(whole) & set(left)
    assert 0 <= min(whole + left) <= max(whole + left) < size
    assert taken


def tokens_of(pieces, row):
    return [
        at for start, length in zip(pieces[0][row], pieces[1][row], strict=True) for at in range(start, start + length)
    ]
