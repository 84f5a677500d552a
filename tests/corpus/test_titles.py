"""Where titles end in the tokens, and that knowing it changes no token and no shards that have none."""

import hashlib
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_shards import LanguageWriter

from mcontriever.artifact import open_artifact, writing
from mcontriever.corpus import PrepareSettings, Shards, Tokenizer, prepare
from mcontriever.errors import ArtifactError

WORDS = [
    "Kahawa",
    "chai",
    "maziwa",
    "naïve",
    "ﬁne",
    "½",
    "1234.5",
    "คาเฟ่",
    "珈琲",
    "</s>",
    "<mask>",
    "\u200b",
    "e\u0301",
]
TITLES = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("bert") / "vocab.txt"
    pieces = "kahawa chai maz ##iwa naive fine 1 ##2 ##3 ##4 5 . 珈 琲 ยา".split()
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces)))
    sentencepiece = Tokenizer.train([" ".join(WORDS)] * 20, 42)
    return sentencepiece, Tokenizer.load(vocabulary)


@settings(deadline=None)
@given(st.lists(st.tuples(TITLES, st.sampled_from(["\n", "\n\n ", "\n\u3000"]), TITLES), max_size=4))
def test_a_title_has_as_many_tokens_as_alone_and_changes_none(tokenizers, made):
    texts = [title + border + text + " mwisho" if title.strip() else text for title, border, text in made]
    titles = [len(title) if title.strip() else 0 for title, _, text in made]
    for tokenizer in tokenizers:
        rows, borders = tokenizer.encode_titled(texts, titles)
        assert [row.tolist() for row in rows] == [row.tolist() for row in tokenizer.encode(texts)]
        alone = tokenizer.encode([text[:title] for text, title in zip(texts, titles, strict=True)])
        assert borders == [len(row) for row in alone]


def test_a_title_is_cleaned_with_its_text(tmp_path):
    row = {"title": " Cafe\u0301\nﬁne ", "text": "coffee tea milk water bread coffee milk bread tea water"}
    (tmp_path / "en.jsonl").write_text(
        "".join(json.dumps(row | {"text": f"{row['text']} {n}"}) + "\n" for n in range(9))
    )
    asked = PrepareSettings(corpus=str(tmp_path / "en.jsonl"), out=str(tmp_path / "shards"), vocab_size=33)
    plain = Shards.open(prepare(asked))
    given = {"tokenizer": str(plain.path / "tokenizer"), "clean": type(asked.clean)(normalise="nfkc")}
    for shards in (
        plain,
        Shards.open(prepare(PrepareSettings(corpus=asked.corpus, out=str(tmp_path / "nfkc"), **given))),
    ):
        lengths = set(shards.titles("en").tolist())
        assert len(lengths) == 1
        title = shards.tokenizer().decode(shards.tokens("en")[: lengths.pop()])
        assert unicodedata.normalize("NFKC", title) == "Caf\u00e9 fine"


def make(path, tokenizer, titles=None):
    with writing(path, "token shards") as draft:
        with LanguageWriter(draft.folder, "en", tokenizer.vocab_size) as writer:
            writer.append(tokenizer.encode(["chai maziwa chai", "chai", "maziwa"]), [0, -1, 1])
        if titles is not None:
            np.save(draft.folder / "titles.en.npy", np.array(titles, np.uint32))
        tokenizer.save(draft.folder / "tokenizer")
        facts = {"vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.fingerprint, "articles": 2}
        draft.meta |= {"languages": ["en"], **facts}
    return path


def test_shards_without_the_file_have_no_titles_and_the_fingerprint_they_had(tokenizers, tmp_path):
    path = make(tmp_path / "old", tokenizers[1])
    shards = Shards.open(path)
    assert shards.titles("en").tolist() == [0, 0, 0]
    files = open_artifact(path, "token shards").files
    content = [["en"], sorted((name, facts["sha256"]) for name, facts in files.items())]
    assert shards.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    titled = Shards.open(make(tmp_path / "new", tokenizers[1], [1, 0, 1]))
    assert titled.titles("en").tolist() == [1, 0, 1]
    assert titled.fingerprint != shards.fingerprint


@pytest.mark.parametrize(
    ("titles", "words"), [([1, 0], "does not fit offsets"), ([0, 2, 0], "has a title longer than its document")]
)
def test_titles_that_do_not_fit_are_found(tokenizers, tmp_path, titles, words):
    with pytest.raises(ArtifactError, match=rf"titles\.en\.npy {words}"):
        Shards.open(make(tmp_path / "shards", tokenizers[1], titles))
