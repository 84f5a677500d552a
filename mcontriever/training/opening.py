"""What a run works with, opened and checked before its first step: encoder, pairs, objective, and a line about them.

Whatever can be known to be wrong here is an error here, so that no hour of training is lost to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import encoder, ranks
from ..corpus import Shards
from ..encoder import Encoder
from ..errors import ArtifactError, SettingsError, did_you_mean
from ..objectives import KeyEncoder, KeyQueue, MomentumEncoder, ShardedMomentumEncoder
from ..pairs import BM25, EncoderSalience, LabelledPairs, UnlabelledPairs
from .model_shape import require_shape
from .settings import TrainSettings
from .step import InBatch, Moco, Objective

Pairs = UnlabelledPairs | LabelledPairs


def open_shards(recipe: TrainSettings) -> Shards | None:
    """Rank 0 reads every byte once, to verify; the others only map the files. None when pairs are labelled."""
    path = recipe.unlabelled.shards
    if not path:
        return None
    ranks.on_main(lambda: Shards.open(path).fingerprint)
    return Shards.open(path, verify=False)


def initial_encoder(recipe: TrainSettings, shards: Shards | None) -> Encoder:
    """The checkpoint to begin from, or random weights of the recipe's shape."""
    if recipe.init or shards is None:
        made = encoder.load(recipe.init, device="cpu")
        require_shape(recipe, made.config, made.contract.normalise)
    else:
        made = Encoder.random(recipe.model, shards.tokenizer(), seed=recipe.seed)
    made.precision, made.attention_dropout = recipe.precision, recipe.model.attention_dropout
    made.checkpoint_activations(recipe.activation_checkpointing)
    return made


def open_pairs(recipe: TrainSettings, query_encoder: Encoder, shards: Shards | None) -> Pairs:
    """Where batches come from, once it is known to fit the model and to fill a batch."""
    contract, room = query_encoder.contract, encoder.positions(query_encoder.config)
    if shards is None:
        for name in ("query_max_length", "passage_max_length"):
            _require_room(f"labelled.{name}", getattr(recipe.labelled, name), room)
        examples = LabelledPairs(
            recipe.labelled,
            query_encoder.tokenizer,
            recipe.seed,
            query_prefix=contract.query_prefix,
            passage_prefix=contract.passage_prefix,
            title_joiner=contract.title_joiner,
            lowercase=contract.lowercase,
        )
        _require_enough(recipe, len(examples), "labelled pairs", recipe.labelled.file)
        return examples
    _require_room("the longest view (unlabelled.window, unlabelled.crop_max)", recipe.unlabelled.longest, room)
    _require_tokenizer(shards, query_encoder, recipe.init)
    crops = UnlabelledPairs(shards, recipe.unlabelled, recipe.seed, scorer=_scorer(recipe, shards))
    _require_enough(recipe, crops.total, "windows of text", recipe.unlabelled.shards)
    crops.require(recipe.batch.size)
    return crops


def _scorer(recipe: TrainSettings, shards: Shards) -> EncoderSalience | None:
    """The frozen encoder that view salient chooses by; None where the shards' own statistics do."""
    name, device = recipe.unlabelled.salience, ranks.device()
    if name == BM25:
        return None
    judge = encoder.load(name, device=device, precision=recipe.precision).requires_grad_(False)
    _require_tokenizer(shards, judge, name)
    room = encoder.positions(judge.config)
    _require_room(
        "unlabelled.window with bos and eos", recipe.unlabelled.window + 2, room, f"unlabelled.salience {name}"
    )
    return EncoderSalience(lambda packed: judge(packed.to(device)), judge.tokenizer.bos, judge.tokenizer.eos)


def make_objective(recipe: TrainSettings, query_encoder: Encoder, *, sharded: bool = False) -> Objective:
    """In-batch negatives, or a queue with its momentum encoder, which is `sharded` where the query encoder is."""
    if recipe.objective.kind == "in_batch":
        return InBatch(recipe.objective)
    if recipe.objective.queue_size < recipe.batch.size:
        raise SettingsError(
            f"objective.queue_size {recipe.objective.queue_size} is smaller than batch.size {recipe.batch.size}: "
            "keys would be dropped unused; make the queue at least as large"
        )
    queue = KeyQueue(recipe.objective.queue_size, query_encoder.contract.dimension, query_encoder.device)
    return Moco(recipe.objective, key_encoder(query_encoder, recipe.objective.momentum, sharded=sharded), queue)


def key_encoder(query_encoder: Encoder, momentum: float, *, sharded: bool) -> KeyEncoder:
    """The momentum encoder, whole on every rank or spread over all of them."""
    if not sharded:
        return MomentumEncoder(query_encoder, momentum)
    rank, world = ranks.rank(), ranks.world_size()
    return ShardedMomentumEncoder(query_encoder, momentum, rank=rank, world=world, gather=ranks.gather)


def require_measure(recipe: TrainSettings, taken: Sequence[str]) -> None:
    """Complain if what saving.best goes by is none of the measures that are `taken`."""
    best = recipe.saving.best
    if best and best not in (known := ["loss", *taken]):
        raise SettingsError(f"saving.best is {best!r}, which is not measured in this run; {did_you_mean(best, known)}")


def headline(recipe: TrainSettings, query_encoder: Encoder, deepspeed: dict[str, Any] | None, done: int) -> str:
    """One line that says what is about to run, and where."""
    device = query_encoder.device
    size = sum(parameter.numel() for parameter in query_encoder.parameters())
    where = f"{ranks.world_size()} rank{'s' * (ranks.world_size() > 1)} on {device.type}"
    if device.type == "cpu":
        where += f" x {torch.get_num_threads()} threads"
    engine = "plain engine" if deepspeed is None else f"ZeRO-{deepspeed['zero_optimization']['stage']}"
    steps = f"steps {done + 1} to {recipe.steps} of {recipe.batch.size} pairs"
    return f"{where}, {engine}, {recipe.precision}, {size / 1e6:.1f} M weights, {recipe.objective.kind}, {steps}"


def remarks(recipe: TrainSettings, pairs: Pairs) -> list[str]:
    """A line for each thing that is given and not used: settings, documents, languages, the ends of texts."""
    unused = pairs.cut() if isinstance(pairs, LabelledPairs) else pairs.left_out()
    if unused and isinstance(pairs, UnlabelledPairs):
        unused += "; nothing is learnt from them"
    return [line for line in (recipe.objective.ignored, unused) if line]


def _require_room(name: str, tokens: int, room: int, whose: str = "the model") -> None:
    if tokens > room:
        raise SettingsError(f"{name} is {tokens} tokens, {whose} has positions for {room}; lower it")


def _require_tokenizer(shards: Shards, model: Encoder, name: str) -> None:
    ours, theirs = model.tokenizer.fingerprint, shards.tokenizer().fingerprint
    if ours != theirs:
        raise ArtifactError(
            f"{shards.path}: tokenised with another tokenizer ({theirs[:12]}) than {name} has ({ours[:12]}); "
            f"prepare the shards again with --tokenizer {name}"
        )


def _require_enough(recipe: TrainSettings, count: int, what: str, where: str) -> None:
    if count < recipe.batch.size:
        raise SettingsError(f"{where}: holds {count} {what}, fewer than batch.size {recipe.batch.size}; lower it")
