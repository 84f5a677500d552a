"""The training cases of `make bench`: one step of MoCo, ours against another, same model, same queue, same crops.

The other is the naive step of `bench_naive.py`, or the published code itself. Dropout is as each side has it: theirs is
the published code's, 0.1 on hidden states and attention, in the query and the key encoder; ours is 0.1 on the query
encoder's hidden states. Before any time is taken both take three small steps without dropout in fp32, and their
losses must be the same. Letters: K keys in the queue, D dimensions.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from bench_common import BATCH, BenchSettings, Case, prepared  # type: ignore[import-not-found]
from bench_naive import NaiveMoco  # type: ignore[import-not-found]
from bench_published import Published  # type: ignore[import-not-found]
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from mcontriever.corpus.shards import Shards
from mcontriever.encoder import Contract, Encoder, save
from mcontriever.objectives import KeyQueue, MomentumEncoder, ObjectiveSettings
from mcontriever.pairs import PairBatch
from mcontriever.pairs.unlabelled import UnlabelledPairs, UnlabelledSettings
from mcontriever.training.engine import PlainEngine
from mcontriever.training.peak import work_of
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.step import Moco, train_step

# The published code's default temperature: scores of random weights are large, and a low one would magnify the
# rounding of both sides along with them.
TEMPERATURE, MOMENTUM = 1.0, 0.999
OPTIM = OptimSettings(lr=5e-5, clip=0.0)


class Side(Protocol):
    """Something that trains a batch at a time."""

    def step(self, batch: PairBatch) -> float:
        """Train on the batch; its loss."""


class Ours:
    """What a run of ours does in a step, from the batch on."""

    def __init__(self, encoder: Encoder, queue: Tensor, precision: str, attention_dropout: float = 0.0) -> None:
        encoder.precision, encoder.attention_dropout = precision, attention_dropout
        objective = ObjectiveSettings(
            temperature=TEMPERATURE, momentum=MOMENTUM, queue_size=len(queue), mask_same_group=False
        )
        keys = KeyQueue(len(queue), queue.shape[1], queue.device)
        keys.enqueue(queue, torch.arange(len(queue), device=queue.device))
        self.moco = Moco(objective, MomentumEncoder(encoder, MOMENTUM), keys)
        self.engine = PlainEngine(encoder.train(), OPTIM, 1)

    def step(self, batch: PairBatch) -> float:
        """See `Side`."""
        return train_step(self.engine, self.moco, [batch], OPTIM.lr).loss


def equal_fp32(settings: BenchSettings, folder: Path) -> Case:
    """Both in fp32."""
    return _naive("training-fp32", settings, folder, ours="fp32", bf16=False)


def equal_bf16(settings: BenchSettings, folder: Path) -> Case:
    """Both in bf16 autocast."""
    return _naive("training-bf16", settings, folder, ours="bf16", bf16=True)


def best(settings: BenchSettings, folder: Path) -> Case:
    """Ours at its best against the naive step as it comes."""
    return _naive("training-best", settings, folder, ours="bf16", bf16=False)


def parity(settings: BenchSettings, folder: Path) -> Case:
    """What attention dropout costs: ours with it, as published, against ours without."""
    batches, queue = crops(settings, folder), queue_of(settings)
    sides = [Ours(make(settings, folder, dropout=0.1), queue, "bf16", dropout) for dropout in (0.1, 0.0)]
    return _case("training-parity", batches, sides[0], sides[1], "ours without attention dropout, bf16")


def share(settings: BenchSettings, folder: Path, *, pairs: int = BATCH) -> Case:
    """The arithmetic that ours does in a second of training in bf16, against a large product of matrices in bf16."""
    batches = crops(settings, folder, pairs=pairs)
    encoder = make(settings, folder, dropout=0.1)
    work = work_of(encoder.config, "moco")
    ours, endless = Ours(encoder, queue_of(settings), "bf16"), itertools.cycle(batches)
    size = 512 if settings.quick else 8192 if settings.gpu else 2048
    left, right = torch.randn(2, size, size, device=settings.device).bfloat16()
    result = left @ right

    def step() -> float:
        batch = next(endless)
        ours.step(batch)
        return work(batch) / 1e9

    def product() -> float:
        for _ in range(20):
            torch.mm(left, right, out=result)
        return 20 * 2 * size**3 / 1e9

    return Case(f"training-share-{pairs}", "GFLOP/s", step, product, f"a product of two {size} x {size} matrices, bf16")


def base_share(settings: BenchSettings, folder: Path, *, pairs: int) -> Case:
    """`share` for a model of XLM-R base's shape."""
    shape = dataclasses.replace(settings, layers=12, hidden=768, heads=12, words=250_002)
    return share(shape, folder, pairs=pairs)


def published_fp32(settings: BenchSettings, folder: Path) -> Case:
    """Both in fp32."""
    return published(settings, folder, ours="fp32")


def published_best(settings: BenchSettings, folder: Path) -> Case:
    """Ours at its best against the published code as it comes."""
    return published(settings, folder, ours="bf16")


def published(settings: BenchSettings, folder: Path, *, ours: str) -> Case:
    """Ours against the published code."""
    batches = crops(settings, folder)
    encoder = make(settings, folder, dropout=0.1)
    peer = _published(settings, folder, encoder)
    name = f"published-{'fp32' if ours == 'fp32' else 'best'}"
    return _case(name, batches, Ours(encoder, peer.queue, ours), peer, "the published code, fp32")


def losses_beside(settings: BenchSettings, folder: Path, batches: list[PairBatch]) -> list[tuple[float, float]]:
    """Losses of the published code and of ours, from the same start, without dropout, in fp32."""
    encoder = make(settings, folder, dropout=0.0)
    peer = _published(settings, folder, encoder)
    ours = Ours(encoder, peer.queue, "fp32")
    return [(peer.step(batch), ours.step(batch)) for batch in batches]


def crops(settings: BenchSettings, folder: Path, *, count: int = 3, pairs: int = BATCH) -> list[PairBatch]:
    """A few batches of crops of the sample."""
    shards = Shards.open(prepared(settings, folder))
    source = UnlabelledPairs(shards, UnlabelledSettings(shards=str(shards.path)), seed=0)
    size = 8 if settings.quick else pairs
    return [source.batch(step, np.arange(size), size).to(settings.device) for step in range(count)]


def make(settings: BenchSettings, folder: Path, *, dropout: float) -> Encoder:
    """Our encoder, of random weights that are always the same; its configuration says what others shall drop."""
    tokenizer = Shards.open(prepared(settings, folder)).tokenizer()
    config = XLMRobertaConfig(
        vocab_size=tokenizer.vocab_size if settings.quick else settings.words,
        num_hidden_layers=2 if settings.quick else settings.layers,
        hidden_size=settings.hidden,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=tokenizer.pad,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    return Encoder(config, Contract.of(config, tokenizer), tokenizer).to(settings.device)


def _naive(name: str, settings: BenchSettings, folder: Path, *, ours: str, bf16: bool) -> Case:
    batches, queue = crops(settings, folder), queue_of(settings)
    first = _pair(make(settings, folder, dropout=0.0), queue, "fp32")
    second = _pair(make(settings, folder, dropout=0.1), queue, ours)
    few = crops(settings, folder, pairs=8)
    losses = np.array([[side.step(batch) for side in first] for batch in few])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    second[1].bf16 = bf16
    return _case(name, batches, *second, f"naive padded step, {'bf16' if bf16 else 'fp32'}")


def _pair(encoder: Encoder, queue: Tensor, precision: str) -> tuple[Ours, NaiveMoco]:
    config = copy.deepcopy(encoder.config)
    config._attn_implementation = "sdpa"
    model = XLMRobertaModel(config, add_pooling_layer=False).to(queue.device)
    model.load_state_dict(encoder.model.state_dict())
    optim = {"lr": OPTIM.lr, "betas": (OPTIM.beta1, OPTIM.beta2), "eps": OPTIM.eps, "weight_decay": OPTIM.weight_decay}
    return Ours(encoder, queue, precision), NaiveMoco(
        model, queue, temperature=TEMPERATURE, momentum=MOMENTUM, optim=optim
    )


def _published(settings: BenchSettings, folder: Path, encoder: Encoder) -> Published:
    checkpoint = save(encoder, folder / "xlm" / f"dropout-{encoder.config.hidden_dropout_prob:g}", overwrite=True)
    return Published(
        Path(settings.reference),
        checkpoint,
        queue_size=_keys(settings),
        projection_size=settings.hidden,
        temperature=TEMPERATURE,
        momentum=MOMENTUM,
        lr=OPTIM.lr,
        beta1=OPTIM.beta1,
        beta2=OPTIM.beta2,
        eps=OPTIM.eps,
        weight_decay=OPTIM.weight_decay,
    )


def _case(name: str, batches: list[PairBatch], ours: Side, peer: Side, peer_name: str) -> Case:
    def turn(side: Side) -> Callable[[], float]:
        endless = itertools.cycle(batches)

        def step() -> float:
            batch = next(endless)
            side.step(batch)
            return float(len(batch))

        return step

    return Case(name, "pairs/s", turn(ours), turn(peer), peer_name)


def _keys(settings: BenchSettings) -> int:
    return 512 if settings.quick else settings.queue


def queue_of(settings: BenchSettings) -> Tensor:
    """Random keys of length one."""
    keys = torch.randn(_keys(settings), settings.hidden, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(keys, dim=1).to(settings.device)  # (K, D)


Maker = Callable[[BenchSettings, Path], Case]
CASES: dict[str, Maker] = {
    "training-fp32": equal_fp32,
    "training-bf16": equal_bf16,
    "training-best": best,
    "training-parity": parity,
    "training-share": share,
}
PUBLISHED: dict[str, Maker] = {"published-fp32": published_fp32, "published-best": published_best}
ON_GPU: dict[str, Maker] = {f"base-{pairs}": functools.partial(base_share, pairs=pairs) for pairs in (64, 256, 512)}
