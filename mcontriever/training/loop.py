"""A training run from its recipe to its checkpoint: pretraining and fine-tuning are the same loop."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import artifact, encoder, progress, ranks, settings
from ..corpus import Shards
from ..encoder import Encoder
from ..errors import ArtifactError, McontrieverError, SettingsError
from ..objectives import KeyQueue, MomentumEncoder
from ..pairs import LabelledPairs, UnlabelledPairs
from . import ds_config, state
from .engine import Engine, prepare_deepspeed, start_engine
from .metrics import MetricsLog
from .schedule import learning_rate
from .settings import TrainSettings
from .step import InBatch, Moco, Objective, samples_of_rank, train_step

# What may change between two starts of one run without changing the experiment.
_FREE = ("output", "deepspeed_config", "log_every", "saving")


def train(recipe: TrainSettings) -> Path:
    """Run the recipe, from the newest train state there is, and return the checkpoint's folder."""
    output = Path(recipe.output)
    model = output / "model"
    deepspeed = ds_config.read(recipe.deepspeed_config) if recipe.deepspeed_config else None
    start_ranks(with_deepspeed=deepspeed is not None)
    try:
        recipe.batch.rows_per_rank(ranks.world_size())
        joined = None if deepspeed is None else ds_config.join(deepspeed, recipe, ranks.world_size())
        if ranks.from_main(_finished(model, recipe)):
            say(f"{model}: this run has ended already; its checkpoint is left as it is")
            return model
        _run(recipe, output, model, joined)
        return model
    finally:
        ranks.stop()


def start_ranks(*, with_deepspeed: bool) -> None:
    """Make this process one of the group. DeepSpeed wants a group even of one."""
    if with_deepspeed:
        prepare_deepspeed()
        ranks.prepare_environment()
    ranks.start(alone_too=with_deepspeed)


def say(line: str) -> None:
    """One line to standard error, from rank 0."""
    if ranks.is_main():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _run(recipe: TrainSettings, output: Path, model: Path, deepspeed: dict[str, Any] | None) -> None:
    device = ranks.device()
    query_encoder = _initial_encoder(recipe).to(device)
    pairs = _open_pairs(recipe, query_encoder)
    objective = _objective(recipe, query_encoder)
    engine = start_engine(
        query_encoder.train(),
        recipe.optim,
        precision=recipe.precision,
        accumulation=recipe.batch.accumulation,
        deepspeed=deepspeed,
    )
    done = _resume(recipe, output, engine, objective)
    say(_headline(recipe, query_encoder, deepspeed, device, done))

    log = MetricsLog(output, recipe.log_every, resume_at=done, shown=ranks.is_main())
    shares = samples_of_rank(recipe.batch.size, recipe.batch.accumulation)
    with progress.bar("Training", recipe.steps, "steps", done=done, shown=ranks.is_main()) as bar:
        for step in range(done, recipe.steps):
            began = time.perf_counter()
            _seed_step(recipe.seed, step)
            micro_batches = [pairs.batch(step, samples, recipe.batch.size).to(device) for samples in shares]
            rate = learning_rate(recipe.optim, step, recipe.steps)
            result = train_step(engine, objective, micro_batches, rate)
            if not math.isfinite(result.loss):
                raise McontrieverError(
                    f"the loss became {result.loss} at step {step + 1}; no state was saved from it. "
                    "Lower optim.lr, raise objective.temperature, or resume from the last state with another seed"
                )
            ended = step + 1 == recipe.steps
            log.add(
                step + 1,
                result,
                pairs=recipe.batch.size,
                seconds=time.perf_counter() - began,
                learning_rate=rate,
                last=ended,
            )
            bar.advance(1, loss=f"{result.loss:.3f}", accuracy=f"{result.accuracy:.2f}")
            if (step + 1) % recipe.saving.every == 0 or ended:
                _save(recipe, output, step + 1, engine, objective)
    _write_checkpoint(recipe, output, model, engine, query_encoder, deepspeed)


def _initial_encoder(recipe: TrainSettings) -> Encoder:
    if recipe.init:
        return encoder.load(recipe.init, device="cpu")
    return Encoder.random(recipe.model, Shards.open(recipe.unlabelled.shards).tokenizer(), seed=recipe.seed)


def _open_pairs(recipe: TrainSettings, query_encoder: Encoder) -> UnlabelledPairs | LabelledPairs:
    if recipe.labelled.file:
        contract = query_encoder.contract
        return LabelledPairs(
            recipe.labelled,
            query_encoder.tokenizer,
            recipe.seed,
            query_prefix=contract.query_prefix,
            passage_prefix=contract.passage_prefix,
            title_joiner=contract.title_joiner,
            lowercase=contract.lowercase,
        )
    shards = Shards.open(recipe.unlabelled.shards)
    ours, theirs = query_encoder.tokenizer.fingerprint, shards.tokenizer().fingerprint
    if ours != theirs:
        raise ArtifactError(
            f"{recipe.unlabelled.shards}: tokenised with another tokenizer ({theirs[:12]}) than {recipe.init} has "
            f"({ours[:12]}); prepare the shards again with --tokenizer {recipe.init}"
        )
    return UnlabelledPairs(shards, recipe.unlabelled, recipe.seed)


def _objective(recipe: TrainSettings, query_encoder: Encoder) -> Objective:
    if recipe.objective.kind == "in_batch":
        return InBatch(recipe.objective)
    if recipe.objective.queue_size < recipe.batch.size:
        raise SettingsError(
            f"objective.queue_size {recipe.objective.queue_size} is smaller than batch.size {recipe.batch.size}: "
            "keys would be dropped unused; make the queue at least as large"
        )
    queue = KeyQueue(recipe.objective.queue_size, query_encoder.contract.dimension, query_encoder.device)
    return Moco(recipe.objective, MomentumEncoder(query_encoder, recipe.objective.momentum), queue, recipe.precision)


def _seed_step(seed: int, step: int) -> None:
    """Dropout is a function of (seed, step, rank), as the data is: no generator state has to be saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + ranks.rank()) % 2**63)


def _experiment(recipe: TrainSettings) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(recipe).items() if key not in _FREE}


def _save(recipe: TrainSettings, output: Path, step: int, engine: Engine, objective: Objective) -> None:
    tensors: dict[str, dict[str, Tensor]] = engine.state()
    if isinstance(objective, Moco) and ranks.is_main():
        tensors = {**tensors, "key_encoder": objective.encoder.state_dict(), "queue": objective.queue.state_dict()}
    state.save(output, step, tensors, {"recipe": _experiment(recipe)}, recipe.saving.keep)


def _resume(recipe: TrainSettings, output: Path, engine: Engine, objective: Objective) -> int:
    path, complaints = state.newest(output)
    for complaint in complaints:
        say(complaint)
    if path is None:
        return 0
    tensors, meta = state.load(path)
    _same_experiment(path, meta["recipe"], json.loads(json.dumps(_experiment(recipe))))
    step = int(meta["step"])
    engine.load_state(tensors, step)
    if isinstance(objective, Moco):
        objective.encoder.load_state_dict(tensors["key_encoder"])
        objective.queue.load_state_dict(tensors["queue"])
    say(f"resuming after step {step} from {path}")
    return step


def _same_experiment(path: Path, before: dict[str, Any], now: dict[str, Any], at: str = "") -> None:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _same_experiment(path, old, new, f"{at}{key}.")
        elif old != new:
            raise SettingsError(
                f"{path}: was trained with {at}{key} = {old!r}, the recipe now says {new!r}; "
                "restore the recipe, or choose another output folder"
            )


def _finished(model: Path, recipe: TrainSettings) -> bool:
    if not ranks.is_main() or not model.exists():
        return False
    meta = artifact.open_artifact(model, "checkpoint", verify=False).meta
    if "training" not in meta:
        raise ArtifactError(f"{model}: holds a checkpoint that no training run wrote; choose another output folder")
    _same_experiment(model, meta["training"], json.loads(json.dumps(_experiment(recipe))))
    return True


def _write_checkpoint(
    recipe: TrainSettings,
    output: Path,
    model: Path,
    engine: Engine,
    query_encoder: Encoder,
    deepspeed: dict[str, Any] | None,
) -> None:
    weights = engine.state()["weights"]
    if ranks.is_main():
        extra = {"recipe.toml": settings.dump(recipe)}
        if deepspeed is not None:
            extra["deepspeed.json"] = json.dumps(deepspeed, indent=2) + "\n"
        meta = {"training": json.loads(json.dumps(_experiment(recipe)))}
        encoder.save(query_encoder, model, weights=weights, extra_files=extra, meta=meta)
        if not recipe.saving.keep_last:
            state.discard_all(output)
    say(f"checkpoint written to {model}")
    ranks.barrier()


def _headline(
    recipe: TrainSettings, query_encoder: Encoder, deepspeed: dict[str, Any] | None, device: torch.device, done: int
) -> str:
    size = sum(parameter.numel() for parameter in query_encoder.parameters())
    where = f"{ranks.world_size()} rank{'s' * (ranks.world_size() > 1)} on {device.type}"
    if device.type == "cpu":
        where += f" x {torch.get_num_threads()} threads"
    engine = "plain engine" if deepspeed is None else f"ZeRO-{deepspeed['zero_optimization']['stage']}"
    steps = f"steps {done + 1} to {recipe.steps} of {recipe.batch.size} pairs"
    return f"{where}, {engine}, {recipe.precision}, {size / 1e6:.1f} M weights, {recipe.objective.kind}, {steps}"
