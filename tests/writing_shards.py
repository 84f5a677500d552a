"""How the tests write token shards of their own, document by document."""

import numpy as np

from mcontriever.corpus.shards import GrowingArray


class LanguageWriter:
    """One language's documents, all without a title."""

    def __init__(self, folder, language, vocab_size):
        self._tokens = GrowingArray(folder / f"tokens.{language}.npy", np.min_scalar_type(vocab_size - 1))
        self._offsets = GrowingArray(folder / f"offsets.{language}.npy", np.int64)
        self._articles = GrowingArray(folder / f"articles.{language}.npy", np.int64)
        self._offsets.append(np.zeros(1, dtype=np.int64))

    def append(self, documents, articles):
        for document, article in zip(documents, articles, strict=True):
            self._tokens.append(document)
            self._offsets.append(np.array([self._tokens.count]))
            self._articles.append(np.array([article]))

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        for array in (self._tokens, self._offsets, self._articles):
            array.close()
