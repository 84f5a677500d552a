"""What a recipe says about pairs without labels: which view, how noisy, from which languages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import SettingsError
from ..settings import in_range, one_of, only_for
from .recurring import SPAN_TOKENS
from .sentences import TITLE_TOKENS
from .views import LEAST_TOKENS

BM25 = "bm25"
View = Literal["crop", "ict", "neighbour", "title", "spans", "salient"]


@dataclass(frozen=True, kw_only=True)
class UnlabelledSettings:
    """Pairs of views of one document, from token shards."""

    shards: str = ""
    """folder that `mcontriever prepare` wrote"""
    view: View = "crop"
    """crop: two independent crops; ict: a sentence and the rest; neighbour: two crops that touch; title: the
    document's title, or where it has none its first sentence, and a crop of what follows; spans: two crops around a
    span that comes twice; salient: the span that says most, and the rest"""
    window: int = 256
    """longest stretch of one document that both views come from, in tokens"""
    window_borders: Literal["document", "corpus"] = "document"
    """corpus: windows begin anywhere and run over the borders of documents, as the reference's do"""
    crop_min: float = 0.1
    """shortest crop, as a part of the window"""
    crop_max: float = 0.5
    """longest crop, as a part of the window; with ict the longest sentence"""
    ict_keep: float = 0.1
    """ict, salient: how often the sentence or span stays in the passage"""
    span_keep: float = 0.5
    """spans: how often the span stays in the query. Crops reach as far as crop_min and crop_max say where the two
    occurrences leave room; near each other they are cut in the middle between them, and never shorter than the span
    and some tokens more"""
    salient_length: int = 16
    """salient: longest span, in tokens"""
    salience: str = BM25
    """salient: what says which span is best. bm25 counts in the shards; or a checkpoint with the shards' tokenizer, a
    folder or hub name, kept as it is: the span most similar to its window. It reads every window and 16 spans of it,
    on top of a step's own arithmetic 0.6 (in_batch) to 1.6 (moco) times as much, for a model of the same size"""
    delete: float = 0.1
    """probability with which each token of a view is deleted"""
    replace: float = 0.0
    """probability with which each token left is replaced by a random one of the vocabulary"""
    mask: float = 0.0
    """probability with which each token left is replaced by the mask token"""
    shuffle: float = 0.0
    """probability with which each token left moves one to three places on"""
    comparable: float = 0.0
    """crop: how often the passage comes from another language version of the same article, where there is one. For
    aligned sentences: one a document, those that translate each other of one article; then comparable, crop_min and
    crop_max 1, delete 0 and a window no shorter than a sentence"""
    exponent: float = 0.0
    """languages are drawn in proportion to size**exponent: 0 all alike, 1 by size"""
    weights: dict[str, float] = field(default_factory=dict)
    """languages are drawn in proportion to these instead, one for each, 0 leaves it out: {en = 2.0, sw = 1.0}; one
    alone as unlabelled.weights.en"""
    unmixed: bool = False
    """whether each step is of one language, languages taking turns as often as they would have had rows"""

    def __post_init__(self) -> None:
        one_of("unlabelled.view", self.view, get_args(View))
        one_of("unlabelled.window_borders", self.window_borders, ("document", "corpus"))
        in_range("unlabelled.window", self.window, 8 if self.view == "crop" else 16, 2**20)
        for name in ("crop_min", "crop_max"):
            in_range(f"unlabelled.{name}", getattr(self, name), 0, 1, low_open=True)
        for name in ("ict_keep", "span_keep", "replace", "mask", "shuffle", "comparable"):
            in_range(f"unlabelled.{name}", getattr(self, name), 0, 1)
        in_range("unlabelled.replace + unlabelled.mask", self.replace + self.mask, 0, 1)
        in_range("unlabelled.delete", self.delete, 0, 1, high_open=True)
        if self.view == "salient":
            in_range("unlabelled.salient_length", self.salient_length, LEAST_TOKENS, self.window // 2)
        in_range("unlabelled.exponent", self.exponent, 0, 4)
        for language, weight in self.weights.items():
            in_range(f"unlabelled.weights.{language}", weight, 0, 1e9)
        if self.weights and not any(self.weights.values()):
            raise SettingsError("unlabelled.weights are all 0, which leaves no language; give one at least a weight")
        if self.weights and self.exponent:
            raise SettingsError("give unlabelled.weights or unlabelled.exponent, got both")
        if self.crop_min > self.crop_max:
            raise SettingsError(
                f"unlabelled.crop_min must not exceed unlabelled.crop_max, got {self.crop_min} and {self.crop_max}"
            )
        if not self.salience:
            raise SettingsError("unlabelled.salience is empty; give bm25, or a checkpoint's folder or hub name")
        if self.view == "neighbour" and self.crop_max > 0.5:
            raise SettingsError(
                "unlabelled.crop_max must be at most 0.5 with unlabelled.view neighbour, for both crops lie in one "
                f"window without overlap, got {self.crop_max}"
            )
        only_for(self, "unlabelled", ("ict_keep",), "view", "ict", "salient")
        only_for(self, "unlabelled", ("span_keep",), "view", "spans")
        only_for(self, "unlabelled", ("salient_length", "salience"), "view", "salient")
        if self.comparable and self.view != "crop":
            raise SettingsError(f"unlabelled.comparable goes with view crop, got view {self.view}; set it to 0")
        if self.window_borders == "corpus" and (self.view == "title" or self.comparable):
            raise SettingsError(
                "unlabelled.window_borders corpus does not go with unlabelled.comparable or view title, which need "
                "whole documents; set it to document"
            )

    @property
    def longest(self) -> int:
        """Most tokens a view can have, special tokens included."""
        part = 1.0 if self.view in ("ict", "salient") else self.crop_max
        least = {"title": TITLE_TOKENS, "spans": SPAN_TOKENS + LEAST_TOKENS}.get(self.view, LEAST_TOKENS)
        return min(max(math.ceil(part * self.window), least), self.window) + 2
