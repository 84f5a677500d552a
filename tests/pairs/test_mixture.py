"""The order of samples: quotas in closed form, every position once an epoch, nothing that depends on who asks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.pairs.counter import below, streams, uniform, words, words_along
from mcontriever.pairs.mixture import Mixture, permute, quotas, share_out

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=6)
SEEDS = st.integers(-(2**40), 2**70)
EXPONENTS = st.sampled_from([0.0, 0.3, 1.0])
quick = settings(max_examples=40, deadline=None)


@given(st.integers(1, 5000), SEEDS)
@quick
def test_permute_is_a_bijection(size, seed):
    keys = streams(seed, 0)
    order = permute(np.arange(size), np.array(size), keys)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_permute_depends_on_its_key_and_spreads():
    size = 1000
    orders = np.stack([permute(np.arange(size), np.array(size), streams(0, epoch)) for epoch in range(200)])
    assert len({order.tobytes() for order in orders}) == 200
    # place 0 lands evenly: 200 draws over ten tenths, chi-squared with 9 degrees of freedom under its 1e-6 quantile
    counts = np.histogram(orders[:, 0], bins=10, range=(0, size))[0]
    assert ((counts - 20) ** 2 / 20).sum() < 45
    # neighbours do not stay neighbours
    assert np.abs(np.corrcoef(orders[0, :-1], orders[0, 1:])[0, 1]) < 0.15


@given(SIZES, EXPONENTS, SEEDS)
@quick
def test_every_position_of_a_language_comes_once_an_epoch(sizes, exponent, seed):
    mixture = Mixture(sizes, exponent, seed)
    languages, positions = mixture.draw(np.arange(3 * mixture.block))
    for language, size in enumerate(sizes):
        drawn = positions[languages == language]
        whole = len(drawn) // size
        for epoch in range(min(whole, 3)):
            np.testing.assert_array_equal(np.sort(drawn[epoch * size : (epoch + 1) * size]), np.arange(size))
        rest = drawn[whole * size :]
        assert len(set(rest.tolist())) == len(rest)


@given(SIZES, EXPONENTS, SEEDS, st.integers(0, 10**12))
@quick
def test_a_block_holds_each_language_exactly_as_often_as_its_quota(sizes, exponent, seed, block):
    mixture = Mixture(sizes, exponent, seed)
    languages, positions = mixture.draw(np.arange(mixture.block) + block * mixture.block)
    np.testing.assert_array_equal(np.bincount(languages, minlength=len(sizes)), mixture.quotas)
    assert (positions >= 0).all()
    assert (positions < np.array(sizes)[languages]).all()


@given(SIZES, EXPONENTS, SEEDS, st.integers(0, 3000), st.sampled_from([1, 2, 4, 8]))
@quick
def test_any_number_of_ranks_sees_the_same_batch_from_any_step(sizes, exponent, seed, step, world):
    batch = 16
    expected = Mixture(sizes, exponent, seed).draw(np.arange((step + 2) * batch))
    for rank in range(world):
        mixture = Mixture(sizes, exponent, seed)  # as after a restart: nothing was drawn before
        mine = step * batch + np.arange(rank, batch, world)
        for drawn, all_of_them in zip(mixture.draw(mine), expected, strict=True):
            np.testing.assert_array_equal(drawn, all_of_them[mine])


@given(SIZES, EXPONENTS, SEEDS, st.permutations(range(40)))
@quick
def test_a_sample_does_not_depend_on_which_others_are_asked_for(sizes, exponent, seed, order):
    mixture = Mixture(sizes, exponent, seed)
    near_a_border = mixture.block - 20 + np.array(order)
    together = mixture.draw(near_a_border)
    alone = [mixture.draw(near_a_border[row : row + 1]) for row in range(40)]
    for part in (0, 1):
        np.testing.assert_array_equal(together[part], [pair[part][0] for pair in alone])


def test_quotas_in_closed_form():
    assert quotas([7, 900, 33], 0.0, 3 * 100).tolist() == [100, 100, 100]
    assert quotas([10, 20, 70], 1.0, 100).tolist() == [10, 20, 70]
    assert quotas([1, 4, 16], 0.5, 70).tolist() == [10, 20, 40]
    assert quotas([1, 1, 1], 1.0, 100).tolist() == [34, 33, 33]  # largest remainder; the first where they are equal
    assert quotas([1, 10**9], 1.0, 100).tolist() == [1, 99]
    for sizes in ([], [0, 3], [1] * 101):
        with pytest.raises(ValueError, match="expected 1 to 100 sizes"):
            quotas(sizes, 0.0, 100)


@given(SIZES, st.floats(0, 2), st.integers(6, 5000))
@quick
def test_quotas_are_within_one_of_exact(sizes, exponent, block):
    counts = quotas(sizes, exponent, block)
    weights = np.array(sizes, dtype=float) ** exponent
    exact = block * weights / weights.sum()
    assert counts.sum() == block
    assert counts.min() >= 1
    if exact.min() >= 1:
        assert np.abs(counts - exact).max() < 1 + 1e-6


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 7.0]), min_size=1, max_size=8).filter(any), st.integers(8, 5000))
@quick
def test_shares_are_0_for_weight_0_alone(weights, block):
    counts = share_out(weights, block)
    assert counts.sum() == block
    assert [bool(count) for count in counts] == [weight > 0 for weight in weights]


def test_equal_weights_beside_a_0_are_exactly_equal():
    mixture = Mixture([5, 5, 5, 5], 0.0, 1, weights=[1.0, 0.0, 1.0, 1.0])
    assert mixture.quotas.tolist() == [1366, 0, 1366, 1366]


def test_seeds_give_different_orders():
    first, second = (np.stack(Mixture([500, 500], 0.0, seed).draw(np.arange(1000))) for seed in (1, 2))
    assert (first != second).mean() > 0.4


def test_random_words_are_addressed_and_even():
    streams_of_two = streams(3, np.array([10, 11]))
    along = words_along(streams_of_two, np.array([3, 2]))
    one_by_one = [words(streams_of_two[stream], place)[0] for stream, place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]]
    assert along.tolist() == [int(word) for word in one_by_one]
    assert streams(3, 10)[0] == streams_of_two[0] != streams(4, 10)[0]
    assert streams(3, 10, 1)[0] != streams(3, 1, 10)[0]
    many = words(streams(0, 0), np.arange(100_000))
    assert abs(uniform(many).mean() - 0.5) < 0.005
    assert 0 <= uniform(many).min() <= uniform(many).max() < 1
    counts = np.bincount(below(many, 7), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts / 100_000 - 1 / 7).max() < 0.005
    bits = np.unpackbits(many.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.01
