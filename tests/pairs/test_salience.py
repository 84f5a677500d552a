"""Scorers of spans: BM25 by its formula, an encoder by its vectors, and that the view takes what scores best."""

import numpy as np
import pytest
import torch
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.pairs import UnlabelledPairs, UnlabelledSettings, unlabelled
from mcontriever.pairs.salience import EncoderSalience, Statistics
from mcontriever.pairs.windows import Windows

COMMON = np.arange(5, 15)
DOCUMENTS = [np.concatenate([COMMON, [20 + number] * 4, COMMON, COMMON]) for number in range(6)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(30))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = Tokenizer.load(folder / "vocab.txt")
    with writing(folder / "shards", "token shards") as draft:
        with LanguageWriter(draft.folder, "en", tokenizer.vocab_size) as writer:
            writer.append(DOCUMENTS, [-1] * len(DOCUMENTS))
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {"languages": ["en"], "vocab_size": tokenizer.vocab_size, "articles": 0}
        draft.meta |= {"tokenizer": tokenizer.fingerprint}
    return Shards.open(folder / "shards")


def test_statistics_are_bm25_a_token(shards):
    statistics = Statistics(Windows(shards, 64), 35)
    starts, lengths = np.array([[0, 8], [10, 9]]), np.array([[3, 4], [4, 6]])
    text = np.concatenate(DOCUMENTS[:2])
    scores = statistics(text, np.array([34, 34]), np.zeros(2, dtype=np.int64), starts, lengths)
    for row in range(2):
        for column in range(2):
            start, length = starts[row, column], lengths[row, column]
            weights = []
            for token in DOCUMENTS[row][start : start + length]:
                holding = sum(token in document for document in DOCUMENTS)
                often = int((DOCUMENTS[row] == token).sum())  # every window is of the mean size
                idf = np.log(1 + (6 - holding + 0.5) / (holding + 0.5))
                weights.append(idf * often * 1.9 / (often + 0.9))
            assert scores[row, column] == pytest.approx(np.mean(weights), abs=1e-5)


@pytest.mark.parametrize(("batch_tokens", "most"), [(1, 6), (8, 13), (100, 100)])
def test_the_encoder_compares_spans_with_their_windows(batch_tokens, most):
    given = []

    def embed(packed):
        given.append(len(packed.ids))
        return torch.stack([torch.bincount(row, minlength=12).float() for row in packed.split()])

    scorer = EncoderSalience(embed, bos=0, eos=2, batch_tokens=batch_tokens)
    tokens, sizes = np.array([5, 5, 6, 7, 8, 8, 8, 9]), np.array([4, 4])
    scores = scorer(tokens, sizes, np.zeros(2), np.array([[0, 2], [0, 3]]), np.array([[2, 2], [3, 1]]))
    assert scores.tolist() == [[2 * 2 + 2, 1 + 1 + 2], [3 * 3 + 2, 1 + 2]]
    assert sum(given) == 8 + 8 + 6 * 2
    assert max(given) <= most
    assert (len(given) == 1) == (batch_tokens == 100)


def test_a_scorer_is_asked_for_several_small_steps_at_once_and_changes_nothing_by_it(shards, monkeypatch):
    calls = []

    def embed(packed):
        calls.append(len(packed))
        return torch.stack([torch.bincount(row, minlength=35).float() for row in packed.split()])

    settings = UnlabelledSettings(view="salient", window=64, salient_length=6)
    drawn = []
    for ahead in (1, 64):
        monkeypatch.setattr(unlabelled, "_AHEAD_SCORED", ahead)
        made = UnlabelledPairs(shards, settings, 1, scorer=EncoderSalience(embed, 0, 2))
        drawn.append([made.batch(step, np.arange(4), 4).query.ids.tolist() for step in range(8)])
    assert drawn[0] == drawn[1]
    assert calls == [4 * 17] * 8 + [64 * 17]


@pytest.mark.parametrize("handed_in", [False, True])
def test_the_view_takes_the_span_that_scores_best(shards, handed_in):
    def prefers_common(tokens, sizes, languages, starts, lengths):
        return -Statistics(Windows(shards, 64), 35)(tokens, sizes, languages, starts, lengths)

    settings = UnlabelledSettings(view="salient", window=64, delete=0.0, salient_length=6, ict_keep=0.0)
    made = UnlabelledPairs(shards, settings, 1, scorer=prefers_common if handed_in else None)
    batch = made.batch(0, np.arange(200), 200)
    rare = [sum(int(token) >= 20 for token in row) for row in batch.query.split()]
    assert (np.mean(rare) > 2) != handed_in
    for query, passage in zip(batch.query.split(), batch.passage.split(), strict=True):
        assert len(query) + len(passage) == 34 + 4
