"""Noise: as often as asked, on whom it may, and a function of the view's number alone."""

import numpy as np
import pytest
import torch

from mcontriever.corpus import Tokenizer
from mcontriever.pairs import Packed
from mcontriever.pairs.counter import streams, words
from mcontriever.pairs.noise import Noise, Tape

WORDS = [f"w{number}" for number in range(95)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    return Tokenizer.load(vocabulary)


def noisy(tokenizer, numbers, lengths, *, seed=1, replace=0.0, mask=0.0, shuffle=0.0):
    """Views whose content counts up, before and after."""
    rows = [
        [tokenizer.bos, *(5 + (7 * number + np.arange(length)) % 95), tokenizer.eos]
        for number, length in zip(numbers, lengths, strict=True)
    ]
    packed = Packed.of([np.array(row) for row in rows])
    before = packed.ids.clone()
    Noise(tokenizer, seed, replace=replace, mask=mask, shuffle=shuffle).apply(packed, np.array(numbers))
    edges = torch.isin(before, torch.tensor([tokenizer.bos, tokenizer.eos]))
    assert before[edges].equal(packed.ids[edges])
    return before[~edges], packed.ids[~edges], packed


def test_the_tape_deletes_as_often_as_asked_and_keeps_a_token():
    tape = Tape(3, 0.1, 100)
    bits = words(streams(0, 0), np.arange(20_000))
    lengths = np.full(20_000, 50)
    places, starts, counts = tape.read(bits, lengths)
    assert abs(counts.mean() / 50 - 0.9) < 0.003
    # as spread as independent deletions: variance 50 * 0.1 * 0.9
    assert abs(counts.var() - 4.5) < 0.25
    assert (tape.kept[starts] >= places).all()
    assert (tape.kept[starts + counts - 1] < places + lengths).all()
    strict = Tape(3, 0.99, 100)
    assert (strict.read(bits, np.ones(20_000, dtype=np.int64))[2] == 1).all()
    assert not np.array_equal(tape.kept, Tape(4, 0.1, 100).kept)


def test_tokens_are_replaced_and_masked_as_often_as_asked(tokenizer):
    numbers, lengths = range(400), [50] * 400
    before, after, _ = noisy(tokenizer, numbers, lengths, replace=0.2, mask=0.1)
    masked = after == tokenizer.mask
    assert abs(masked.float().mean() - 0.1) < 0.01
    changed = (before != after) & ~masked
    assert abs(changed.float().mean() - 0.2 * 94 / 95) < 0.01
    assert int(after[changed].min()) >= 5
    assert len(after[changed].unique()) == 95


def test_moved_tokens_stay_near_and_none_is_lost(tokenizer):
    before, after, packed = noisy(tokenizer, range(200), [60] * 200, shuffle=0.3)
    rows, plain = after.view(200, 60), before.view(200, 60)
    assert rows.sort().values.equal(plain.sort().values)
    order = (rows[:, :, None] == plain[:, None, :]).int().argmax(2)  # (views, places) where each came from
    steps = torch.arange(60) - order
    assert int(steps.max()) <= 3
    assert int(steps.min()) >= -4
    assert 0.1 < (steps > 0).float().mean() < 0.3
    assert packed.lengths.tolist() == [62] * 200


@pytest.mark.parametrize("kind", ["replace", "mask", "shuffle"])
def test_noise_does_not_depend_on_which_other_views_are_there(tokenizer, kind):
    numbers, lengths = [9, 4, 7], [30, 1, 12]
    _, _, together = noisy(tokenizer, numbers, lengths, **{kind: 0.5})
    for place, row in enumerate(together.split()):
        _, _, alone = noisy(tokenizer, numbers[place : place + 1], lengths[place : place + 1], **{kind: 0.5})
        assert row.equal(alone.ids)
    _, _, other = noisy(tokenizer, numbers, lengths, seed=2, **{kind: 0.5})
    assert not other.ids.equal(together.ids)
