"""Cleaning one document: normalisation, a least length, a look at the language. Each reason to drop it has a name."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import require
from ..settings import in_range, one_of
from .formats import Document

TOO_SHORT = "too_short"
WRONG_LANGUAGE = "wrong_language"

_LOOKED_AT = 1000  # characters from the middle, as the ends of a page are menus; py3langid reads 1 million a second

# What the Contriever code's normalize_text does: the first characters of a row become the second. Not done there and
# so not here: tildes, pluses, guillemets, full-width forms, spaces other than these three.
_REFERENCE = (
    ("\x01-\x08\x0e\x0f\x11-\x1b\u00ad", ""),  # controls, and the hyphen that shows only at a line's end
    ("\x0b\x0c\x85", " "),  # tabulator down, new page, next line
    ("\u2010-\u2015\u2043\u2212\uff0d\u207b", "-"),  # hyphens, dashes, minuses
    ("\u2018-\u201b`\u00b4\u055a\ua78b\ua78c\uff07", "'"),  # single quotes, accents, apostrophes
    ("\u201c-\u201f", '"'),
    ("\u2032\u2035", "'"),  # primes
    ("\u2033\u2036", "''"),
    ("\u2034\u2037", "'''"),
    ("\u2057", "''''"),
    ("\u2026", "..."),
    ("\u2044\u2215", "/"),
)
_REPLACED = re.compile(f"[{''.join(characters for characters, _ in _REFERENCE)}]")
_REPLACEMENT = {
    chr(code): written
    for characters, written in _REFERENCE
    for first, last in re.findall("(.)(?:-(.))?", characters, re.DOTALL)
    for code in range(ord(first), ord(last or first) + 1)
}


@dataclass(frozen=True, kw_only=True)
class CleanSettings:
    """What is done to a text before it is tokenized, and which texts are left out."""

    normalise: Literal["none", "nfc", "nfkc", "reference"] = "none"
    """form of the text: a Unicode one, or the reference's, with quotes, hyphens and slashes in ASCII and no controls"""
    min_characters: int = 0
    """drop documents of fewer characters"""
    language_check: float = 0.0
    """drop a document to whose language py3langid gives a probability below this, such as 0.1; 0: no check"""

    def __post_init__(self) -> None:
        one_of("clean.normalise", self.normalise, ("none", "nfc", "nfkc", "reference"))
        in_range("clean.min_characters", self.min_characters, 0, 2**31 - 1)
        in_range("clean.language_check", self.language_check, 0, 1)


@dataclass(frozen=True)
class Dropped:
    """A document left out; `reason` is `TOO_SHORT` or `WRONG_LANGUAGE`."""

    reason: str


class Cleaner:
    """Cleans documents one at a time; nothing is kept between them."""

    def __init__(self, settings: CleanSettings) -> None:
        self._settings = settings
        self._identifier = _identifier() if settings.language_check else None
        self._judged = frozenset(self._identifier.labels if self._identifier else ())

    def clean(self, document: Document) -> Document | Dropped:
        """The document to keep, or why it is left out."""
        text = normalise(document.text, self._settings.normalise)
        if len(text.strip()) < max(1, self._settings.min_characters):
            return Dropped(TOO_SHORT)
        code = _base(document.language)
        if code in self._judged and not self._is_in(code, text):
            return Dropped(WRONG_LANGUAGE)
        if text == document.text:
            return document
        # no form of normalisation joins what a line end parts, so the new text begins with the new title
        return dataclasses.replace(document, text=text, title=normalise(document.title, self._settings.normalise))

    def unjudged(self, languages: Iterable[str]) -> list[str]:
        """Those of the languages that the language check, if there is one, does not know: it drops none of their text.

        `zh-Hant` is judged as `zh`; `hi_rom` and the three-letter code of a language that has one of two are not known.
        """
        return [language for language in languages if self._identifier and _base(language) not in self._judged]

    def _is_in(self, code: str, text: str) -> bool:
        assert self._identifier is not None
        start = max(0, len(text) - _LOOKED_AT) // 2
        sample = text[start : start + _LOOKED_AT]
        # The second look is for texts in capitals, which py3langid takes for other languages.
        looks = (dict(self._identifier.rank(each))[code] for each in (sample, sample.lower()))
        return any(probability >= self._settings.language_check for probability in looks)


def normalise(text: str, how: Literal["none", "nfc", "nfkc", "reference"]) -> str:
    """The text in a Unicode form (`nfc`, `nfkc`), in the `reference`'s characters, or (`none`) as it is."""
    match how:
        case "none":
            return text
        case "reference":
            text = _REPLACED.sub(lambda match: _REPLACEMENT[match[0]], text)
            return text.replace(" . . . ", " ... ")
        case "nfc":
            return unicodedata.normalize("NFC", text)
        case "nfkc":
            return unicodedata.normalize("NFKC", text)


def _base(language: str) -> str:
    """Without its region; `hi_rom` stays as it is, as Hindi in Latin letters is no Hindi to py3langid."""
    return re.sub("(?:[-_](?:[A-Za-z]{2}|Hans|Hant))+$", "", language)


@functools.cache
def _identifier() -> Any:
    module = require("py3langid.langid", "corpus", "the language check")  # 1.5 s to load
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
