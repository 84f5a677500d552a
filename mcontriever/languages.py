"""The languages we know by name: code, English name, writing system, direction.

Any code may be used for data; this table is what is needed to say a language's name, to choose an analyser and to show
text the right way round.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language: `code` as in file names, its English `name`, and the Unicode name prefixes of its `scripts`."""

    code: str
    name: str
    scripts: tuple[str, ...] = ("LATIN",)
    right_to_left: bool = False


_JAPANESE = ("CJK", "HIRAGANA", "KATAKANA")
_TABLE = (
    Language("ar", "Arabic", ("ARABIC",), right_to_left=True),
    Language("bn", "Bengali", ("BENGALI",)),
    Language("da", "Danish"),
    Language("de", "German"),
    Language("el", "Greek", ("GREEK",)),
    Language("en", "English"),
    Language("es", "Spanish"),
    Language("fa", "Persian", ("ARABIC",), right_to_left=True),
    Language("fi", "Finnish"),
    Language("fr", "French"),
    Language("he", "Hebrew", ("HEBREW",), right_to_left=True),
    Language("hi", "Hindi", ("DEVANAGARI",)),
    Language("hu", "Hungarian"),
    Language("id", "Indonesian"),
    Language("it", "Italian"),
    Language("ja", "Japanese", _JAPANESE),
    Language("km", "Khmer", ("KHMER",)),
    Language("ko", "Korean", ("HANGUL", "CJK")),
    Language("ms", "Malay"),
    Language("nl", "Dutch"),
    Language("no", "Norwegian"),
    Language("pl", "Polish"),
    Language("pt", "Portuguese"),
    Language("ro", "Romanian"),
    Language("ru", "Russian", ("CYRILLIC",)),
    Language("sv", "Swedish"),
    Language("sw", "Swahili"),
    Language("te", "Telugu", ("TELUGU",)),
    Language("th", "Thai", ("THAI",)),
    Language("tr", "Turkish"),
    Language("vi", "Vietnamese"),
    Language("yo", "Yoruba"),
    Language("zh", "Chinese", ("CJK",)),
)
LANGUAGES = {language.code: language for language in _TABLE}


def language(code: str) -> Language:
    """The language of that code; one we have no row for is shown under its code, left to right."""
    return LANGUAGES.get(code, Language(code, code))
