"""Whether vectors computed by other software are the encoder's own: what an export must show before it is kept.

The texts are the contract's golden ones, one a writing system, and all of them together so often that the maximum
length cuts them; lengths differ, so that padding would be seen, and both prefixes and the title joiner are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .model import Encoder

Vectors = NDArray[np.float32]
TITLE = "Penicillin"
_LONG = 600  # tokens that the longest text has at least: enough for the usual cut at 512, not for one at 8192


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of `by` are to ours.

    `difference` is the largest of any coordinate, as a share of its vector's length. `others_cosine`, the mean over
    pairs of different texts, is the scale that the cosines must be read against.
    """

    by: str
    texts: int
    difference: float
    minimum_cosine: float
    mean_cosine: float
    others_cosine: float

    def in_words(self) -> str:
        """For a person."""
        if self.minimum_cosine > 0.99999:
            return f"{self.by} differs from mcontriever by at most {self.difference:.1e} of a vector's length"
        return (
            f"{self.by} gives vectors whose cosine to mcontriever's is {self.minimum_cosine:.4f} at the lowest and "
            f"{self.mean_cosine:.4f} in the mean (two different texts: {self.others_cosine:.4f})"
        )


def told(encoder: Encoder) -> str:
    """In words, how far the vectors of this encoder's precision are from those of the same encoder in fp32."""
    precision, said = encoder.precision, encoder.contract
    rounded = [encoder.encode_queries(queries(said)), encoder.encode_passages(passages(said))]
    try:
        encoder.precision = "fp32"
        found = compare(encoder, precision, lambda texts: rounded[0], lambda pairs: rounded[1])
    finally:
        encoder.precision = precision
    return (
        f"{precision}: the cosine of a text's vector to its own in fp32 is {found.minimum_cosine:.4f} at the lowest, "
        f"{found.mean_cosine:.4f} in the mean (two different texts: {found.others_cosine:.4f})"
    )


def queries(contract: Contract) -> list[str]:
    """Texts to compare on, as a user gives them."""
    texts = [text for text, _ in contract.golden]
    tokens = sum(len(ids) for _, ids in contract.golden)
    return [*texts, " ".join(texts * -(-_LONG // max(tokens, 1)))]


def passages(contract: Contract) -> list[tuple[str, str]]:
    """Titles and texts to compare on, as a user gives them; the first has no title."""
    return [(TITLE if row else "", text) for row, text in enumerate(queries(contract))]


def compare(
    encoder: Encoder,
    by: str,
    encode_queries: Callable[[list[str]], Vectors],
    encode_passages: Callable[[list[tuple[str, str]]], Vectors],
) -> Agreement:
    """The encoder's vectors beside those of two functions that do what its `encode_queries` and `…_passages` do."""
    asked, given = queries(encoder.contract), passages(encoder.contract)
    ours = np.concatenate([encoder.encode_queries(asked), encoder.encode_passages(given)]).astype(np.float64)
    theirs = np.concatenate([encode_queries(asked), encode_passages(given)]).astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1)
    cosines = (ours * theirs).sum(1) / (lengths * np.linalg.norm(theirs, axis=1))
    texts = ours[: len(asked) - 1] / lengths[: len(asked) - 1, None]  # the long one is made of the others
    pairs = (texts @ texts.T)[np.triu_indices(len(texts), 1)]
    return Agreement(
        by=by,
        texts=len(ours),
        difference=float(np.abs((ours - theirs) / lengths[:, None]).max()),
        minimum_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        others_cosine=float(pairs.mean()),
    )
