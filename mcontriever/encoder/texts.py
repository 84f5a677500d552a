"""What can be embedded: a text that says nothing, or is none, is answered with an error that names it.

A vector would come out of anything, and an empty text's is as good a hit as any other. Allowed are texts of any length,
of which the contract keeps the beginning, and control characters among visible ones, which tokenizers drop.
"""

from __future__ import annotations

import re
import unicodedata

from ..errors import DataError

_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # control and format characters, white space
_REPLACEMENT = "\ufffd"  # stands for what was lost in decoding; tokenizers drop it
_SPECIAL = re.compile(r"</?s>|<(?:pad|mask)>|\[(?:CLS|SEP|PAD|MASK)\]")  # never part of what a text gives


def as_query(query: object, where: str) -> str:
    """The query itself, if it is one."""
    text = _text(query, where)
    if not is_visible(text):
        raise DataError(_EMPTY.format(where))
    return text


def as_passage(passage: object, where: str) -> tuple[str, str]:
    """The title, perhaps empty, and the text of a passage: a text, or a (title, text) pair with one of them filled."""
    pair = passage if isinstance(passage, tuple | list) and len(passage) == 2 else ("", passage)
    text = _text(pair[1], where, "a text or a (title, text) pair")
    title = _text(pair[0], f"{where}'s title")
    if not (is_visible(title) or is_visible(text)):
        raise DataError(_EMPTY.format(where))
    return title, text


def is_visible(text: str) -> bool:
    """Whether a text has anything in it but white space, characters that cannot be seen, and special tokens."""
    first = _first_seen(text)
    # most texts are done here: only one that begins like a special token is looked through
    return bool(first) and (first not in "<[" or bool(_first_seen(_SPECIAL.sub("", text))))


def refuse_string(texts: object) -> None:
    """One text given for many would be taken for a list of its characters."""
    if isinstance(texts, str):
        raise DataError(f"expected a list of texts, got one text {texts[:40]!r}; write [text]")


_EMPTY = "{} is empty; leave it out or give it a text"


def _first_seen(text: str) -> str:
    seen = (one for one in text if one != _REPLACEMENT and unicodedata.category(one) not in _UNSEEN)
    return next(seen, "")


def _text(text: object, where: str, expected: str = "a text") -> str:
    if not isinstance(text, str):
        raise DataError(f"{where} is {_shown(text)}; expected {expected}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a JSON escape can spell half of a character; the tokenizer panics over it
        half = f"{text[error.start]!r} at character {error.start}"
        raise DataError(f"{where} holds half of a surrogate pair, {half}; mend the text") from error
    return text


def _shown(thing: object) -> str:
    written = repr(thing)
    return written if len(written) <= 80 else f"{written[:79]}…"
