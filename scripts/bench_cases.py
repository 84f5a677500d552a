"""The cases of `make bench`: what we do, and the way it is usually done, on the same input.

The peer is written plainly. A case first makes sure that both sides do the same work; what they give must agree before
how fast they give it means anything.
Letters: B pairs of a batch, N texts, D dimensions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench_common import BenchSettings, Case, prepared  # type: ignore[import-not-found]
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcontriever.corpus.shards import Shards
from mcontriever.pairs import PairBatch
from mcontriever.pairs.unlabelled import UnlabelledPairs, UnlabelledSettings


def loader(settings: BenchSettings, folder: Path, *, size: int) -> Case:
    """Crop pairs from shards: ours against a dataset that makes one pair at a time and a collator that pads."""
    shards = Shards.open(prepared(settings, folder))
    crops = UnlabelledSettings(shards=str(shards.path))
    pairs = UnlabelledPairs(shards, crops, seed=0)
    count, samples = 4096 if settings.quick else 32_768, np.arange(size)
    plain = DataLoader(_OneByOne(shards, crops, count), batch_size=size, collate_fn=_Padded(shards.tokenizer().pad))
    steps = itertools.count()  # never one twice: ours makes small batches for several steps at once, and keeps them

    def batches() -> Iterator[PairBatch]:
        return (pairs.batch(step, samples, size) for step in itertools.islice(steps, count // size))

    def ours() -> float:
        return float(sum(map(len, batches())))

    def peer() -> float:
        return float(sum(len(batch["query"]) for batch in plain))

    _same_size(
        [float(batch.query.lengths.float().mean()) for batch in batches()],
        [float(batch["query_mask"].sum(1).float().mean()) for batch in plain],
    )
    return Case(f"loader-{size}", "pairs/s", ours, peer, f"one pair at a time, padded, batches of {size}")


class _OneByOne(Dataset[tuple[Tensor, Tensor]]):
    """A pair for an index, as a torch dataset is usually written: draw a window, crop it twice, drop tokens."""

    def __init__(self, shards: Shards, crops: UnlabelledSettings, count: int) -> None:
        self.crops, self.count, self.random = crops, count, random.Random(0)
        self.bos, self.eos = shards.tokenizer().bos, shards.tokenizer().eos
        self.tokens = [torch.from_numpy(shards.tokens(name).astype(np.int64)) for name in shards.languages]
        self.offsets = [shards.offsets(name) for name in shards.languages]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self.count:
            raise IndexError(index)
        language = self.random.randrange(len(self.tokens))
        document = self.random.randrange(len(self.offsets[language]) - 1)
        begin, end = (int(offset) for offset in self.offsets[language][document : document + 2])
        parts = -(-(end - begin) // self.crops.window)  # of equal size, as ours cuts a document
        part = self.random.randrange(parts)
        window = self.tokens[language][begin:end][(end - begin) * part // parts : (end - begin) * (part + 1) // parts]
        return self.view(window), self.view(window)

    def view(self, window: Tensor) -> Tensor:
        """A random crop with some tokens dropped, its special tokens around it."""
        length = max(1, round(len(window) * self.random.uniform(self.crops.crop_min, self.crops.crop_max)))
        start = self.random.randint(0, len(window) - length)
        kept = [token for token in window[start : start + length].tolist() if self.random.random() >= self.crops.delete]
        return torch.tensor([self.bos, *kept, self.eos])


class _Padded:
    """Pairs to padded tensors with their masks."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        batch = {}
        for name, views in zip(("query", "passage"), zip(*pairs, strict=True), strict=True):
            batch[name] = torch.full((len(views), max(map(len, views))), self.pad)  # (B, longest)
            for row, view in zip(batch[name], views, strict=True):
                row[: len(view)] = view
            batch[f"{name}_mask"] = batch[name] != self.pad
        return batch


def _same_size(ours: list[float], peer: list[float]) -> None:
    """Both loaders must deliver about as many tokens, or their rates cannot be compared."""
    if abs(np.mean(ours) / np.mean(peer) - 1) > 0.1:
        raise AssertionError(f"ours gives {np.mean(ours):.1f} tokens a view, the peer {np.mean(peer):.1f}")
