"""Where sentences end in text that is only there as token ids, found from what is written in each piece.

Shards hold no borders of sentences, and a splitter for thirty languages would need the text. What is robust in all of
them: a mark that ends sentences in its script; for the Latin full stop also a new word after it, so that "3.5" and
"U.S." stay whole where the tokenizer shows spaces. Thai and Lao have no such mark and no spaces between words: there
a space ends a phrase. Burmese, Khmer, Hindi … have marks of their own. Letters: B windows, T tokens of all of them.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus import Tokenizer
from .counter import Words, below

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

LEAST_SENTENCE = 8  # of a sentence that may be picked: "Yes.", "2." or a name between two Thai spaces say little
TITLE_TOKENS = 64  # in which a first sentence must end: a longer one is cut
_LEAST_TITLE = 3

_STOPS = ".…"  # also inside numbers and abbreviations
_MARKS = "!?。｡！？؟۔।॥։។៕။၊།༎።፧‼⁇⁈⁉⸮"
_CLOSING = "\"'”’»›)]}）】」』》〉"
_SCRIPTS = ("THAI ", "LAO ")  # written without spaces between words
# what is known of a piece, as bits of one number, so that a token is looked up once
_STOP, _MARK, _CLOSES, _BEGINS, _DIGIT, _UNSPACED, _SPACE = (1 << bit for bit in range(7))


class SentenceEnds:
    """Tells of every token whether a sentence, or in Thai and Lao a phrase, ends with it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces, begins = tokenizer.pieces
        bare = [piece.rstrip(_CLOSING) for piece in pieces]
        closing = np.array([bool(piece) and not text for piece, text in zip(pieces, bare, strict=True)])
        # where a straight quote begins a word it opens; BERT's pieces do not tell, so there it never closes
        closing &= ~begins | np.array([piece != '"' and piece != "'" for piece in pieces])
        facts = {
            _STOP: [piece.endswith(tuple(_STOPS)) for piece in bare],
            _MARK: [piece.endswith(tuple(_MARKS)) for piece in bare],
            _CLOSES: closing,
            _BEGINS: begins,
            _DIGIT: [piece[:1].isdigit() for piece in pieces],
            _UNSPACED: [unicodedata.name(piece[:1] or " ", "").startswith(_SCRIPTS) for piece in pieces],
            _SPACE: begins & np.array([not piece for piece in pieces]),
        }
        self._facts = np.zeros(len(pieces), dtype=np.uint8)
        for bit, holds in facts.items():
            self._facts |= np.uint8(bit) * np.array(holds, dtype=np.uint8)

    def __call__(self, tokens: NDArray[Any]) -> Flags:
        """(T,) whether a sentence ends with each of the tokens; after the last one anything may follow."""
        facts = self._facts[tokens]
        closes, is_space = _has(facts, _CLOSES), _has(facts, _SPACE)
        facts[1:] |= closes[1:] * (facts[:-1] & (_STOP | _MARK))  # '."' ends a sentence as '.' does
        facts[:-1] |= is_space[:-1] * (facts[1:] & _UNSPACED)  # a bare "▁" belongs to what comes after it
        after = np.append(facts[1:], np.uint8(_BEGINS))
        starts = _has(after, _BEGINS)
        goes_on = _has(after, _CLOSES) | (_has(after, _STOP | _MARK) & ~starts)
        sentence = (_has(facts, _MARK) | (_has(facts, _STOP) & starts & ~_has(after, _DIGIT))) & ~goes_on
        phrase = _has(facts, _UNSPACED) & _has(after, _UNSPACED) & starts
        ends: Flags = sentence | phrase
        return ends


def _has(facts: NDArray[np.uint8], bits: int) -> Flags:
    return (facts & np.uint8(bits)) > 0


def pick(ends: Flags, sizes: Integers, longest: Integers, bits: Words) -> tuple[Integers, Integers]:
    """Start and length of one of the sentences of each window, any of LEAST_SENTENCE to `longest` tokens alike.

    The length is 0 where a window has none. (T,) ends, (B,) sizes of windows end to end, longest and random words.
    """
    borders = np.cumsum(sizes)
    ends = ends.copy()
    ends[borders - 1] = True
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate([[0], stops[:-1]])
    windows = np.searchsorted(borders, stops)
    fitting = (stops - starts >= LEAST_SENTENCE) & (stops - starts <= longest[windows])
    starts, stops, windows = starts[fitting], stops[fitting], windows[fitting]
    counts = np.bincount(windows, minlength=len(sizes))
    found = counts > 0
    chosen = (np.cumsum(counts) - counts + below(bits, counts))[found]
    begin, length = np.zeros_like(sizes), np.zeros_like(sizes)
    begin[found] = starts[chosen] - (borders - sizes)[found]
    length[found] = stops[chosen] - starts[chosen]
    return begin, length


def first(ends: Flags, sizes: Integers, longest: Integers) -> Integers:
    """Length of the first sentence of each text, `longest` where it does not end before that."""
    stops = np.flatnonzero(ends) + 1
    borders = np.cumsum(sizes)
    texts = np.searchsorted(borders, stops)
    lengths = stops - (borders - sizes)[texts]
    texts, lengths = texts[lengths >= _LEAST_TITLE], lengths[lengths >= _LEAST_TITLE]
    found, nearest = np.unique(texts, return_index=True)
    result = longest.copy()
    result[found] = np.minimum(lengths[nearest], longest[found])
    return result
