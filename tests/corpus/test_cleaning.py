"""Cleaning: what each normalisation writes, what is dropped and why, and which languages are not judged."""

import pytest

from mcontriever.corpus.cleaning import TOO_SHORT, WRONG_LANGUAGE, Cleaner, CleanSettings, Dropped, normalise
from mcontriever.corpus.formats import Document
from mcontriever.errors import SettingsError

ENGLISH = "The committee met on Thursday to decide what the new library should look like and who would pay for it."
SWAHILI = "Kamati ilikutana siku ya Alhamisi ili kuamua maktaba mpya itakavyokuwa na nani atakayelipia gharama zake."


def document(text, language="en"):
    return Document("1", language, text, "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ~+«»　ﬁ \n\t", "plain, ~+«»　ﬁ \n\t"),
        ("‐‑‒–—―⁃−－⁻", "-" * 10),
        ("‘’‚‛`´՚Ꞌꞌ＇", "'" * 10),
        ("“”„‟", '""""'),
        ("′ ‵ ″ ‶ ‴ ‷ ⁗", "' ' '' '' ''' ''' ''''"),
        ("3⁄4 ∕ and so on…", "3/4 / and so on..."),
        ("a . . . b", "a ... b"),
        ("soft\u00adhyphen \x01\x08\x0e\x0f\x11\x1b.", "softhyphen ."),
        ("\x00\x10\x1c", "\x00\x10\x1c"),
        ("a\x0bb\x0cc\x85d", "a b c d"),
    ],
)
def test_the_reference_mapping(text, expected):
    assert normalise(text, "reference") == expected


def test_unicode_forms():
    text = "e\u0301 ﬁ"
    assert normalise(text, "none") == text
    assert normalise(text, "nfc") == "é ﬁ"
    assert normalise(text, "nfkc") == "é fi"


def test_a_clean_document_is_kept_with_all_it_has():
    untouched = document(ENGLISH)
    assert Cleaner(CleanSettings()).clean(untouched) is untouched
    assert Cleaner(CleanSettings(normalise="reference")).clean(document("“x”")) == document('"x"')


def test_length_is_counted_after_normalisation_and_without_white_space_around():
    cleaner = Cleaner(CleanSettings(normalise="reference", min_characters=3))
    assert cleaner.clean(document("…")) == document("...")
    assert cleaner.clean(document(" ab\n\n")) == Dropped(TOO_SHORT)
    assert cleaner.clean(document("a\u00ad\u00adb")) == Dropped(TOO_SHORT)


def test_what_is_empty_once_normalised_is_dropped():
    assert Cleaner(CleanSettings(normalise="reference")).clean(document("\u00ad\x01")) == Dropped(TOO_SHORT)


def test_the_language_check_drops_other_languages_and_says_what_it_cannot_judge():
    pytest.importorskip("py3langid")
    cleaner = Cleaner(CleanSettings(language_check=0.1))
    assert cleaner.clean(document(ENGLISH)) == document(ENGLISH)
    assert cleaner.clean(document(SWAHILI)) == Dropped(WRONG_LANGUAGE)
    capitals = document(SWAHILI.upper() + " x" * 5, "sw")
    assert cleaner.clean(capitals) == capitals
    assert cleaner.clean(document(SWAHILI, "sw-KE")) == document(SWAHILI, "sw-KE")
    assert cleaner.clean(document(SWAHILI, "xx")) == document(SWAHILI, "xx")
    assert cleaner.unjudged(["en", "xx", "zh-Hant", "zh_cn", "hi_rom", "swh_Latn"]) == ["xx", "hi_rom", "swh_Latn"]
    assert Cleaner(CleanSettings()).unjudged(["xx"]) == []


def test_the_language_is_that_of_the_middle():
    pytest.importorskip("py3langid")
    cleaner = Cleaner(CleanSettings(language_check=0.1))
    framed = document("\n".join([SWAHILI, *[ENGLISH] * 20, SWAHILI]))
    assert cleaner.clean(framed) == framed


@pytest.mark.parametrize(
    "wrong", [{"normalise": "NFC"}, {"min_characters": -1}, {"language_check": 1.5}, {"language_check": -0.1}]
)
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        CleanSettings(**wrong)
