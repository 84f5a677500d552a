"""Sentence borders found from pieces: what each script ends sentences with, and what only looks like an end."""

from types import SimpleNamespace

import numpy as np
import pytest

from mcontriever.corpus import Tokenizer
from mcontriever.pairs import sentences
from mcontriever.pairs.counter import words
from mcontriever.pairs.sentences import SentenceEnds


def parted(text):
    """`text` is pieces with bars between them, "▁" where a word begins; its sentences, as lists of pieces."""
    pieces = text.split("|")
    begins = np.array([piece[:1] == "▁" for piece in pieces])
    ends = SentenceEnds(SimpleNamespace(pieces=([piece.removeprefix("▁") for piece in pieces], begins)))
    found = np.flatnonzero(ends(np.arange(len(pieces)))) + 1
    return ["|".join(part) for part in np.split(np.array(pieces), found) if len(part)]


@pytest.mark.parametrize(
    "sentences_",
    [
        ["▁One|.", "▁Two|!", "▁Three|?", "▁Four"],
        ["▁It|▁is|▁3|.|5|▁m|.", "▁Yes|."],  # a stop inside a number
        ["▁He|▁said|▁“|Go|.|”", "▁She|▁went|."],  # a closing quote belongs to its sentence
        ["▁Really|?|!", "▁Yes|."],  # several marks end one sentence
        ["▁|孫|文|。", "革命|家|。"],  # no spaces at all
        ["▁यह|▁है|।", "▁वह"],
        ["▁هذا|؟", "▁نعم"],
        ["▁ខ្មែរ|▁នេះ|។", "▁លោក"],  # Khmer's spaces are no borders, its khan is
        ["▁မြန်မာ|။", "▁စာ"],
        ["▁|ใน|การ|นี้", "▁นาย|ทรง", "▁|ทอง|ศรี"],  # a Thai space ends a phrase, also where it is a piece alone
        ["▁|ໃນ|ການ", "▁|ນາຍ"],
        ["▁ไทย|▁Thai|▁word"],  # but not one between words of other scripts
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences_):
    assert parted("|".join(sentences_)) == sentences_


def test_a_tokenizer_that_shows_no_spaces(tmp_path):
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "3", "5", ".", "is", "##s")
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt")
    ids = tokenizer.encode(["it is 3.5. it is"])[0]
    assert [tokenizer.pieces[0][number] for number in ids] == ["it", "is", "3", ".", "5", ".", "it", "is"]
    assert np.flatnonzero(SentenceEnds(tokenizer)(ids)).tolist() == [5]


def test_one_sentence_of_a_length_that_fits_is_picked_from_each_window():
    sizes = np.array([40, 12, 30])
    ends = np.zeros(82, dtype=bool)
    ends[[8, 10, 30, 61]] = True  # sentences of 9, 2, 20, 9 | 12 | 10, 20
    longest = np.array([12, 11, 20])
    found = {window: set() for window in range(3)}
    for seed in range(60):
        start, length = sentences.pick(ends, sizes, longest, words(seed, np.arange(3)))
        for window in range(3):
            found[window].add((int(start[window]), int(length[window])))
    assert found == {0: {(0, 9), (31, 9)}, 1: {(0, 0)}, 2: {(0, 10), (10, 20)}}


def test_the_first_sentence_is_the_title_and_a_longer_one_is_cut():
    ends = np.zeros(60, dtype=bool)
    ends[[1, 9, 25, 58]] = True  # 2 tokens are no title
    assert sentences.first(ends, np.array([20, 20, 20]), np.array([16, 16, 16])).tolist() == [10, 6, 16]
