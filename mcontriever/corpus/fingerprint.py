"""When two tokenizers are one: the same vocabulary, and the same ids for texts that are treated in many ways.

The library's own JSON would not do: it changes from version to version.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Scripts, case, accents, width, composition, white space, numbers, combining marks.
_PROBES = (
    "The Quick brown fox, 1234.5 % of naïve façades; don't — “stop”!",
    "Nani aligundua penisilini?",
    "مَن اكتشف البنسلين؟ ٱلْعَرَبِيَّة ١٢٣",
    "Кто открыл пенициллин? Ёлка й",
    "ペニシリンを発見したのは誰ですか。ﾊﾝｶｸ ＡＢＣ１２",
    "Kuka löysi penisilliinin? İstanbul ǅ ﬁ ½ ²",
    "पेनिसिलिन की खोज किसने की? ক্যালেন্ডার తెలుగు ภาษาไทย ភាសាខ្មែរ 페니실린 青霉素",
    "e\u0301 \u1e69 s\u0323\u0307 \u00ad\u200b\u200d\ufeff x\u00a0y\u3000z\tw\u2028v  u",
    "😀👩‍👩‍👧 €$ <a href='x'>&amp;</a> http://example.org/A_b?c=d",
)


def fingerprint(
    tokenizer: str, special: list[int], encode: Callable[[Sequence[str]], Sequence[NDArray[np.int32]]]
) -> str:
    """Of a tokenizer as its library writes it, its special ids, and what it makes of texts."""
    probes = [row.tolist() for row in encode(_PROBES)]
    with _collecting_nothing():
        kind, vocabulary, merges = _content(json.loads(tokenizer)["model"])
        text = json.dumps([kind, vocabulary, merges, special, probes], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content(model: dict[str, Any]) -> tuple[str, list[Any], list[str]]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = sorted(vocabulary.items(), key=lambda item: item[1])
    else:  # the library reads back a score from JSON with its last bit changed
        scores = np.array([score for _, score in vocabulary], dtype=np.float32).tolist()
        vocabulary = [[piece, score] for (piece, _), score in zip(vocabulary, scores, strict=True)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    return model["type"], vocabulary, merges


@contextlib.contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Half a million lists are made and all are needed; going through them over and over is two thirds of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
