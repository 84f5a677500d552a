"""The sample: every topic in every language, in its own script, nothing repeated, no question copied from a passage."""

import collections
import json
import pathlib
import re
import unicodedata

import pytest

from mcontriever.corpus import read_qrels
from mcontriever.languages import language

SAMPLE = pathlib.Path(__file__).parents[1] / "mcontriever" / "sample"
CODES = ["ar", "en", "fi", "ja", "ru", "sw"]
COPIED = {
    "ja": 12
}  # characters of a Japanese question, or five words elsewhere, that no question takes from its passage


def rows(name):
    return [json.loads(line) for line in (SAMPLE / name).read_text(encoding="utf-8").splitlines()]


CORPUS = {code: rows(f"corpus.{code}.jsonl") for code in CODES}
QUERIES = {code: rows(f"queries.{code}.jsonl") for code in CODES}
TOPICS = [row["article"] for row in CORPUS["en"]]


def test_at_least_a_hundred_topics_in_every_language():
    assert len(TOPICS) == len(set(TOPICS)) >= 100
    for code in CODES:
        assert [row["article"] for row in CORPUS[code]] == TOPICS
        assert [row["_id"] for row in CORPUS[code]] == [f"{topic}.{code}" for topic in TOPICS]


@pytest.mark.parametrize("code", CODES)
def test_text_is_in_the_language_s_own_script_and_clean(code):
    scripts = language(code).scripts
    for row in CORPUS[code] + QUERIES[code]:
        text = row["text"]
        assert text == unicodedata.normalize("NFC", text).strip()
        assert "  " not in text
        assert "\n" not in text
        letters = [unicodedata.name(letter) for letter in text if letter.isalpha()]
        assert sum(name.startswith(scripts) for name in letters) / len(letters) > 0.7, row["_id"]


@pytest.mark.parametrize("code", CODES)
def test_passages_are_two_to_four_sentences(code):
    for row in CORPUS[code]:
        assert 2 <= len(re.findall(r"[.!?؟！？]+(?=\s|$)|。", row["text"])) <= 4, row["_id"]


def test_nothing_is_repeated():
    texts = [row["text"] for code in CODES for row in CORPUS[code]]
    assert len(texts) == len(set(texts))
    for code in CODES:
        for kind in ("_id", "text"):
            counts = collections.Counter(row[kind] for row in QUERIES[code])
            assert [value for value, count in counts.items() if count > 1] == []


def test_every_topic_is_asked_about_in_every_language():
    asked = {code: {row["_id"] for row in QUERIES[code]} for code in CODES}
    for code in CODES:
        assert all(f"{topic}-q{number}" in asked[code] for topic in TOPICS for number in (1, 2))
        assert asked[code] <= asked["en"]


@pytest.mark.parametrize("code", CODES)
def test_no_question_is_cut_from_its_passage(code):
    passages = {row["article"]: row["text"] for row in CORPUS[code]}
    for row in QUERIES[code]:
        passage = passages[row["_id"].rpartition("-q")[0]]
        if code in COPIED:
            width = COPIED[code]
            shared = [row["text"][i : i + width] for i in range(len(row["text"]) - width + 1)]
            assert not [piece for piece in shared if piece in passage], row["_id"]
        else:
            words = re.findall(r"\w+", row["text"].lower())
            spaced = " " + " ".join(re.findall(r"\w+", passage.lower())) + " "
            shared = [f" {' '.join(words[i : i + 5])} " for i in range(len(words) - 4)]
            assert not [piece for piece in shared if piece in spaced], row["_id"]


def test_splits_are_by_topic_and_only_english_is_for_training():
    judged = {path.name: read_qrels(path) for path in sorted((SAMPLE / "qrels").glob("*.tsv"))}
    assert [name for name in judged if name.startswith("train")] == ["train.en.tsv"]
    topics = collections.defaultdict(set)
    for name, qrels in judged.items():
        split, code, _ = name.split(".")
        for query, relevant in qrels.items():
            topic = query.rpartition("-q")[0]
            topics[split].add(topic)
            assert relevant == {f"{topic}.{code}": 1}
            assert any(row["_id"] == query for row in QUERIES[code])
    assert not topics["train"] & topics["test"]
    assert not topics["dev"] & (topics["train"] | topics["test"])
    assert topics["train"] | topics["dev"] | topics["test"] == set(TOPICS)
    assert len(judged["test.sw.tsv"]) == 144
