"""Two tiny models, passages, and what embedding them without any stop gives."""

import pathlib
import sys

import pytest

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.retrieval import embed

sys.path.append(str(pathlib.Path(__file__).parent))

from embedding import WORDS, asked, make_model, rows, write


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.train(WORDS * 9, 36)
    for seed in (1, 2):
        make_model(folder / str(seed), tokenizer, seed)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "corpus.en.jsonl", rows())


@pytest.fixture(scope="module")
def whole(models, corpus, tmp_path_factory):
    """What is made without any stop, by one process."""
    return embed(asked(models, corpus, tmp_path_factory.mktemp("whole") / "out"))
