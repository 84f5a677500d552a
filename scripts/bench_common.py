"""What the cases of `make bench` share: their settings, the form of a case, and crops and passages of the sample."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mcontriever.artifact import write_text
from mcontriever.corpus.passages import read_passages
from mcontriever.corpus.prepare import PrepareSettings, prepare
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.errors import UsageError
from mcontriever.settings import in_range

SAMPLE = Path(__file__).resolve().parent.parent / "mcontriever" / "sample"
BATCH = 64  # pairs of a batch, on both sides


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Time ours against a peer, turn about in one run."""

    case: str = ""
    """only the case of this name"""
    out: str = "bench.json"
    """where the results go, rewritten after every case"""
    resume: bool = False
    """go on with the unfinished run that `out` holds: same settings, machine and commit"""
    quick: bool = False
    """a small model, few texts and three rounds: whether it runs, not how fast"""
    gpu: bool = False
    """on the GPU, in bf16"""
    rounds: int = 5
    """how often each side is timed, after one warm-up"""
    threads: int = 1
    """threads of the CPU"""
    layers: int = 6
    """layers of the encoder"""
    hidden: int = 384
    """its dimensions"""
    heads: int = 6
    """its attention heads"""
    vocabulary: int = 8000
    """pieces of the tokenizer, trained on the sample"""
    words: int = 32_000
    """rows of the embedding in the training cases"""
    queue: int = 65_536
    """keys in MoCo's queue"""
    reference: str = ""
    """a clone of the published code, github.com/facebookresearch/contriever: adds the cases that run it"""
    texts: int = 200
    """how many passages of the sample are encoded"""

    def __post_init__(self) -> None:
        in_range("rounds", self.rounds, 1, 1000)
        in_range("threads", self.threads, 1, 1024)
        in_range("texts", self.texts, 1, 1_000_000)
        if self.gpu and not torch.cuda.is_available():
            raise UsageError("--gpu: torch sees no GPU here; leave it out, or install torch with CUDA")

    @property
    def device(self) -> torch.device:
        """Where both sides run."""
        return torch.device("cuda" if self.gpu else "cpu")


@dataclass(frozen=True)
class Case:
    """Two ways to do one thing. Each call does it once and returns how much was done, in what `unit` counts."""

    name: str
    unit: str
    ours: Callable[[], float]
    peer: Callable[[], float]
    peer_name: str


def articles() -> list[tuple[str, str]]:
    """(language, text) of long documents, ten passages of the sample each: crops come from windows of 256 tokens."""
    found = []
    for language in sorted(path.name.split(".")[1] for path in SAMPLE.glob("corpus.*.jsonl")):
        texts = [passage.text for passage in read_passages(SAMPLE / f"corpus.{language}.jsonl")]
        found += [(language, " ".join(texts[start : start + 10])) for start in range(0, len(texts), 10)]
    return found


def passages(count: int) -> list[str]:
    """Beginnings of the articles, as unequal in length as passages in the wild are (lognormal)."""
    generator = random.Random(0)
    texts = [text for _, text in articles()]
    return [generator.choice(texts)[: max(20, int(generator.lognormvariate(5.5, 0.6)))] for _ in range(count)]


def prepared(settings: BenchSettings, folder: Path) -> Path:
    """Shards of the articles, with a tokenizer trained on the sample; made once for all cases of a run."""
    path = folder / "shards"
    if not path.exists():
        found = articles()
        texts = [passage.text for passage in read_passages(SAMPLE)]
        Tokenizer.train(texts, settings.vocabulary).save(folder / "tokenizer")
        for language in sorted({language for language, _ in found}):
            lines = [
                json.dumps({"_id": str(row), "text": text})
                for row, (name, text) in enumerate(found)
                if name == language
            ]
            write_text(folder / "corpus" / f"{language}.jsonl", "\n".join(lines) + "\n")
        tokenizer = str(folder / "tokenizer")
        prepare(PrepareSettings(corpus=str(folder / "corpus"), out=str(path), tokenizer=tokenizer))
    return path
