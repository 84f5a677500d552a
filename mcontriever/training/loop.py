"""A training run from its recipe to its checkpoint: pretraining and fine-tuning are the same loop."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import ranks
from ..pairs import PairBatch
from ..pairs.prefetch import prefetch
from . import ds_config, micro_batches, opening, saving
from .engine import start_engine
from .evaluate import Evaluator
from .experiment import identity
from .guards import Guard
from .saving import Saver
from .schedule import learning_rate
from .settings import TrainSettings
from .signals import Request
from .step import Moco, Objective, train_step
from .watchdog import Watchdog
from .watching import watching
from .zero_engine import prepare_deepspeed

_COLLECTIVE_SECONDS = 1800.0  # what a rank waits for the others at most, while rank 0 reads all shards for example
_FOR_EVER = 3e7  # seconds; gloo adds it to the time in nanoseconds, and much more would overflow


def train(recipe: TrainSettings) -> Path:
    """Run the recipe, from the newest train state there is, and return the checkpoint's folder."""
    model = saving.model_of(recipe)
    deepspeed = ds_config.read(recipe.deepspeed_config) if recipe.deepspeed_config else None
    start_ranks(with_deepspeed=deepspeed is not None, timeout_seconds=_patience(recipe.guard.hang_seconds))
    try:
        recipe.batch.rows_per_rank(ranks.world_size())
        joined = None if deepspeed is None else ds_config.join(deepspeed, recipe, ranks.world_size())
        # Rank 0 looks at the disk and tells the others: a doubt is then an error on all ranks, not a hang on some.
        experiment = ranks.on_main(lambda: identity(recipe))
        if ranks.on_main(lambda: saving.finished(recipe, experiment)):
            ranks.say(f"{model}: this run has ended already; its checkpoint is left as it is")
        else:
            _run(recipe, joined, experiment)
        return model
    finally:
        ranks.stop()


def _patience(hang_seconds: float) -> float:
    """What a rank waits for the others: the watchdog, which knows more, must speak first; without one, for ever."""
    return _COLLECTIVE_SECONDS + hang_seconds if hang_seconds else _FOR_EVER


def start_ranks(*, with_deepspeed: bool, timeout_seconds: float = _COLLECTIVE_SECONDS) -> None:
    """Make this process one of the group. DeepSpeed wants a group even of one."""
    if with_deepspeed:
        prepare_deepspeed()
        ranks.prepare_environment()
    ranks.start(alone_too=with_deepspeed, timeout_seconds=timeout_seconds)


def _run(recipe: TrainSettings, deepspeed: dict[str, Any] | None, experiment: dict[str, Any]) -> None:
    device = ranks.device()
    shards = opening.open_shards(recipe)
    query_encoder = opening.initial_encoder(recipe, shards).to(device)
    pairs = opening.open_pairs(recipe, query_encoder, shards)
    objective = opening.make_objective(recipe, query_encoder, sharded=ds_config.stage_of(deepspeed) == 3)
    evaluator = Evaluator(recipe.evaluation, query_encoder)
    opening.require_measure(recipe, evaluator.names)
    engine = start_engine(
        query_encoder.train(),
        recipe.optim,
        accumulation=recipe.batch.accumulation,
        deepspeed=deepspeed,
        precision=recipe.precision,
    )
    guard = Guard(recipe, pairs, query_encoder.tokenizer)
    saver = Saver(recipe, experiment, query_encoder, engine, objective, guard)
    done = saver.resume()
    saver.require_space(done)
    ranks.say(opening.headline(recipe, query_encoder, deepspeed, done))
    for line in opening.remarks(recipe, pairs):
        ranks.say(line)

    if not done:
        _warm_start(recipe, objective, pairs, device)
    share_of = functools.partial(micro_batches.drawn, pairs=pairs, settings=recipe.batch)
    with (
        contextlib.closing(prefetch(share_of, range(done, recipe.steps))) as shares,
        watching(recipe, query_encoder.config, engine, done, device) as log,
        Watchdog(recipe.guard.hang_seconds) as watchdog,
        Request(device) as request,
    ):
        evaluator.maybe(done, engine, log, beat=watchdog.beat)
        watchdog.beat(f"making the batch of step {done + 1}")
        began = time.perf_counter()
        for step, share in shares:
            _seed_step(recipe.seed, step)
            batches = micro_batches.fitted(share, recipe.batch, device)
            waited = time.perf_counter() - began
            rate = learning_rate(recipe.optim, step, recipe.steps)
            watchdog.beat(f"computing step {step + 1}")
            result = train_step(engine, objective, batches, rate, guard.accepts)
            passed = guard.passes(step + 1, result)
            ended = step + 1 == recipe.steps
            seconds = time.perf_counter() - began
            if passed:
                saver.saw(result.loss)
            log.add(step + 1, result, batches, seconds=seconds, waited=waited, learning_rate=rate, skipped=guard.fault)
            measured = evaluator.maybe(step + 1, engine, log, last=ended, beat=watchdog.beat)
            leaving = request.made() and not ended
            if saver.due(step + 1, measured) or leaving:
                watchdog.beat(f"saving after step {step + 1}")
                saver.save(step + 1)
            if leaving:
                raise request.leave(step + 1)
            watchdog.beat(f"making the batch of step {step + 2}")
            began = time.perf_counter()
        watchdog.beat("writing the checkpoint")
        saving.write_checkpoint(saver, deepspeed)


def _warm_start(recipe: TrainSettings, objective: Objective, pairs: opening.Pairs, device: torch.device) -> None:
    """Fill the queue with keys of the pairs that steps after the last would hold: real ones, and not the first's."""

    def after_the_last() -> Iterator[list[PairBatch]]:
        for step in itertools.count(recipe.steps):
            _seed_step(recipe.seed, step)
            yield micro_batches.of_step(step, pairs, recipe.batch, device)

    if isinstance(objective, Moco) and recipe.objective.warm_start:
        objective.warm_start(after_the_last())


def _seed_step(seed: int, step: int) -> None:
    """Dropout is a function of (seed, step, rank), as the data is: no generator state has to be saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + ranks.rank()) % 2**63)
