"""Article numbers, the tokenizer's sample and the report, each against the shortest way to the same."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.corpus import articles
from mcontriever.corpus.report import LanguageReport, Tally, languages_of, table, told
from mcontriever.corpus.sample import even_shares, windows
from mcontriever.errors import DataError


def numbered(hashes):
    """Article numbers by first appearance, with a dictionary."""
    known = {}
    return [[known.setdefault(each, len(known)) if each else -1 for each in row] for row in hashes], len(known)


@settings(max_examples=40, deadline=None)
@given(
    hashes=st.lists(
        st.lists(st.integers(0, 12).map(lambda n: 2 * n - 1 if n else 0), max_size=40), min_size=1, max_size=4
    ),
    block=st.integers(1, 9),
    bucket=st.integers(1, 30),
)
def test_articles_are_numbered_by_first_appearance(tmp_path_factory, hashes, block, bucket):
    folder = tmp_path_factory.mktemp("articles")
    files = {}
    for number, row in enumerate(hashes):
        files[f"l{number}"] = folder / f"hashes-{number}.npy"
        np.save(files[f"l{number}"], np.array(row, dtype=np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(articles, "_BLOCK", block)
        patch.setattr(articles, "_BUCKET", bucket)
        (folder / "scratch").mkdir()
        count = articles.number_articles(files, folder, folder / "scratch")
    written = [np.load(folder / f"articles.{language}.npy").tolist() for language in files]
    assert (written, count) == numbered(hashes)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=30), wanted=st.integers(1, 60_000))
def test_the_sample_is_as_large_as_wanted_and_spread_evenly(lengths, wanted):
    starts, size = np.cumsum([0, *lengths]).tolist(), sum(lengths)
    taken = [
        (start + begin, start + end)
        for start, length in zip(starts[:-1], lengths, strict=True)
        for begin, end in windows(start, length, size, wanted)
    ]
    covered = np.zeros(size, dtype=int)
    for begin, end in taken:
        covered[begin:end] += 1
    assert covered.max() == 1
    count = max(1, wanted // 4000)
    expected = size if wanted >= size else wanted // count * count
    assert covered.sum() == expected
    half = covered[: size // 2].sum()  # within two stretches of a half
    assert abs(half - expected / 2) <= 4000 * 2 or count == 1


def test_even_shares_give_what_small_languages_cannot_use_to_the_others():
    assert even_shares({"a": 10, "b": 1000, "c": 500}, 310) == {"a": 10, "c": 150, "b": 150}
    assert even_shares({"a": 10, "b": 20}, 1000) == {"a": 10, "b": 20}


def piece(read, bad=0, **dropped):
    first = [[f"f:{number}", "not JSON"] for number in range(min(bad, 5))]
    return {"read": read, "dropped": dropped, "bad": bad, "first_bad": first}


def test_the_report_adds_up_pieces_and_gives_rates_that_mean_something():
    pieces = [piece({"sw": 4, "ja": 2}, 2, sw={"too_short": 1}), piece({"sw": 1}, 4, sw={"too_short": 1, "odd": 2})]
    reports = languages_of(pieces)
    assert list(reports) == ["ja", "sw"]
    assert reports["sw"].dropped == {"too_short": 2, "odd": 2}
    for language in reports:
        reports[language].add({"documents": 1, "tokens": 30, "words": 20, "characters": 90, "exact_duplicates": 1})
    facts = told(reports, pieces)
    assert facts["report"]["sw"]["tokens_per_word"] == 1.5
    assert "tokens_per_word" not in facts["report"]["ja"]
    assert facts["report"]["ja"]["characters_per_token"] == 3.0
    assert facts["bad_lines"] == {"count": 6, "of": 13, "first": [*pieces[0]["first_bad"], *pieces[1]["first_bad"][:3]]}
    lines = [line.split() for line in table(reports).splitlines()]
    assert lines[1] == ["ja", "1", "30", "-", "3.00", "1", "0", "0", "0"]
    assert lines[2] == ["sw", "1", "30", "1.50", "3.00", "1", "0", "2", "2"]
    assert len({len(line) for line in table(reports).splitlines()}) == 1
    assert table({"sw": LanguageReport()}).splitlines()[1].split() == ["sw", "0", "0", "-", "-", "0", "0"]


@pytest.mark.parametrize(
    ("limit", "bad", "read", "early", "late"),
    [
        (0, 0, 10, False, False),
        (0, 1, 10**6, True, True),
        (5, 5, 10, False, False),
        (5, 6, 10**6, True, True),
        (0.01, 1, 9, False, True),  # a share of ten lines says nothing yet, but it does when they are all
        (0.01, 1, 99, False, False),
        (0.01, 200, 10_000, True, True),
    ],
)
def test_too_many_bad_lines_are_met_as_soon_as_they_are_known(limit, bad, read, early, late):
    words = f"{bad:,} of {bad + read:,} lines are bad, --bad_lines allows {limit:g}; one of them f:0"
    tally = Tally(limit)
    with pytest.raises(DataError, match=words) if early else contextlib.nullcontext():
        tally.add(piece({"sw": read}, bad))
    with pytest.raises(DataError, match=words) if late else contextlib.nullcontext():
        tally.check()
