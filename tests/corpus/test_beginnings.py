from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import Unigram

from mcontriever.corpus.beginnings import beginning, borders
from mcontriever.corpus.tokenizer import Tokenizer

LINES = [
    "Coffee is a drink.",
    "Kahawa ni kinywaji.",
    "القهوة مشروب",
    "Кофе это напиток",
    "コーヒー 飲み物",
    "กาแฟ คือ เครื่องดื่ม",
]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    "##a",
    "##s",
    "coffee",
    "青",
    "霉",
]


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return Tokenizer.train(LINES * 4, 66)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.fixture(params=["unigram", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def letters() -> list[str]:
    return [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def test_a_cut_beside_any_letter_changes_no_id(tokenizer: Tokenizer) -> None:
    """The proof: every character there is, before the border and after it."""
    pattern = borders(tokenizer._backend)
    assert pattern is not None
    after = [letter for letter in letters() if pattern.search(f"a {letter}")]
    before = [letter for letter in letters() if pattern.search(f"{letter} a")]
    assert min(len(after), len(before)) > 40_000
    one = tokenizer.encode(["ka"])[0]
    whole = tokenizer.encode([f"ka {letter}b" for letter in after])
    rest = tokenizer.encode([f"{letter}b" for letter in after])
    assert all(np.array_equal(row, [*one, *part]) for row, part in zip(whole, rest, strict=True))
    whole = tokenizer.encode([f"k{letter} ka" for letter in before])
    rest = tokenizer.encode([f"k{letter}" for letter in before])
    assert all(np.array_equal(row, [*part, *one]) for row, part in zip(whole, rest, strict=True))


PIECES = st.sampled_from(
    [
        " ",
        "  ",
        "a",
        "ka",
        "coffee",
        "青霉",
        "ำ",
        "\u0301",
        "\u200b",
        "\u0600",
        "<mask>",
        "</s>",
        "[MASK]",
        "\n",
        "ൎ",
        "ﾞ",
        ".",
        "1",
    ]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(parts=st.lists(PIECES, max_size=400), count=st.integers(1, 6))
def test_beginnings_are_those_of_the_whole(
    unigram: Tokenizer, wordpiece: Tokenizer, parts: list[str], count: int
) -> None:
    text = "".join(parts)
    for tokenizer in (unigram, wordpiece):
        whole, found = tokenizer.encode([text])[0], tokenizer.encode_beginnings([text], count)[0]
        assert np.array_equal(found, whole[: len(found)])
        assert len(found) == len(whole) or len(found) > count


def test_a_megabyte_is_not_read_to_its_end(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda texts: (read.extend(map(len, texts)), encode(texts))[1])
    text = "coffee " * 150_000
    found = tokenizer.encode_beginnings([text, "short"], 100)
    assert sum(read) < 5000
    assert len(found[0]) > 100
    assert np.array_equal(found[0], encode([text[:20_000]])[0][: len(found[0])])
    assert np.array_equal(found[1], encode(["short"])[0])


def test_more_is_read_where_a_beginning_gave_too_little(unigram: Tokenizer) -> None:
    text = ("\u200b" * 50 + " a ") * 300 + "</s>" * 900 + " coffee" * 900
    whole, found = unigram.encode([text])[0], unigram.encode_beginnings([text], 700)[0]
    assert len(found) > 700
    assert np.array_equal(found, whole[: len(found)])


def test_words_of_one_letter_a_line_are_cut_nowhere(unigram: Tokenizer) -> None:
    pattern = borders(unigram._backend)
    assert pattern is not None
    assert beginning("コ" * 5000, 10, pattern) == "コ" * 5000
    assert beginning("ab cd", 2, pattern) == "ab"
    assert beginning("ab cd", 3, pattern) == "ab cd"


def test_ideographs_are_words_of_their_own_for_bert_alone(unigram: Tokenizer, wordpiece: Tokenizer) -> None:
    assert len(wordpiece.encode_beginnings(["青霉" * 5000], 10)[0]) < 200
    assert len(unigram.encode_beginnings(["青霉" * 5000], 10)[0]) == len(unigram.encode(["青霉" * 5000])[0])


def backend(normaliser: object = None, splitter: object = None) -> Backend:
    made = Backend(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    if normaliser is not None:
        made.normalizer = normaliser
    if splitter is not None:
        made.pre_tokenizer = splitter
    return made


def test_other_pipelines_are_cut_only_where_it_is_known_to_be_right() -> None:
    words = pre_tokenizers.Metaspace()
    hub = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), "▁"), normalizers.Strip()])
    assert borders(backend(hub, words)) is not None
    assert borders(backend(None, None)) is None
    assert borders(backend(None, pre_tokenizers.Metaspace(split=False))) is None
    assert borders(backend(None, pre_tokenizers.ByteLevel())) is None
    assert borders(backend(normalizers.Replace("a b", "c"), words)) is None
    spanning = backend(hub, words)
    spanning.add_tokens(["New York"])
    assert borders(spanning) is None
