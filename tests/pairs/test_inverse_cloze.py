"""The inverse cloze task on shards whose tokens tell where they come from, with sentences that end at known places."""

import numpy as np
import pytest
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.errors import DataError, SettingsError
from mcontriever.pairs import UnlabelledPairs, UnlabelledSettings

WORDS = ("coffee", "tea", "milk", "water", "bread")
SENTENCES = [f"{word} " * 9 + f"{word}. " for word in WORDS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".")))
    return Tokenizer.load(vocabulary)


def shards_of(path, tokenizer, texts):
    with writing(path, "token shards") as draft:
        for language, documents in texts.items():
            with LanguageWriter(draft.folder, language, tokenizer.vocab_size) as writer:
                rows = tokenizer.encode(documents)
                writer.append(rows, [-1] * len(rows))
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {"languages": list(texts), "vocab_size": tokenizer.vocab_size, "articles": 0}
        draft.meta |= {"tokenizer": tokenizer.fingerprint}
    return Shards.open(path)


def pairs(shards, **changes):
    return UnlabelledPairs(shards, UnlabelledSettings(view="ict", **{"delete": 0.0} | changes), 7)


def texts(packed, tokenizer):
    return [" ".join(tokenizer.pieces[0][token] for token in row.tolist()[1:-1]) for row in packed.split()]


def test_the_query_is_a_sentence_and_the_passage_the_rest(tmp_path, tokenizer):
    made = pairs(shards_of(tmp_path / "shards", tokenizer, {"en": ["".join(SENTENCES)]}), ict_keep=0.25)
    batch = made.batch(0, np.arange(400), 400)
    sentences = [sentence.strip().replace(".", " .") for sentence in SENTENCES]
    chosen, kept = [], 0
    for query, passage in zip(texts(batch.query, tokenizer), texts(batch.passage, tokenizer), strict=True):
        chosen.append(sentences.index(query))
        if query in passage:
            kept += 1
            assert passage == " ".join(sentences)
        else:
            assert passage == " ".join(sentence for sentence in sentences if sentence != query)
    assert abs(kept / 400 - 0.25) < 0.07
    assert np.bincount(chosen, minlength=5).min() > 50


@pytest.mark.parametrize("crop_max", [0.1, 0.5, 1.0])
def test_without_a_sentence_that_fits_the_query_is_a_crop(tmp_path, tokenizer, crop_max):
    documents = ["coffee " * 300, "tea milk water bread " * 2, "tea milk water bread"]
    shards = shards_of(tmp_path / "shards", tokenizer, {"en": documents})
    made = pairs(shards, ict_keep=0.0, crop_min=0.1, crop_max=crop_max)
    whole = [sum(len(ids) for ids in tokenizer.encode([text])) for text in documents]
    assert whole[2] < 8 <= whole[1]
    assert made.windows == [-(-whole[0] // 256) + 1]  # the short document has none
    batch = made.batch(0, np.arange(200), 200)
    sizes = set((batch.query.lengths + batch.passage.lengths - 4).tolist())
    assert sizes == {whole[0] // 2, -(-whole[0] // 2), whole[1]}
    assert min(batch.query.lengths.tolist()) >= 4 + 2
    assert min(batch.passage.lengths.tolist()) >= 4 + 2


def test_a_language_of_short_documents_is_an_error(tmp_path, tokenizer):
    shards = shards_of(tmp_path / "shards", tokenizer, {"en": SENTENCES, "sw": ["tea", "milk water"]})
    with pytest.raises(DataError, match="language 'sw' has no document over 2 tokens, expected one of 8 or more"):
        pairs(shards)


def test_comparable_goes_with_crops_only():
    with pytest.raises(SettingsError, match="unlabelled.comparable goes with view crop, got view ict"):
        UnlabelledSettings(view="ict", comparable=0.5)
