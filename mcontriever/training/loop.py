"""A training run from its recipe to its checkpoint: pretraining and fine-tuning are the same loop."""

from __future__ import annotations

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
from . import ds_config, metrics, state
from .engine import Engine, prepare_deepspeed, start_engine
from .experiment import identity, require_same
from .schedule import learning_rate
from .settings import TrainSettings
from .step import InBatch, Moco, Objective, StepResult, samples_of_rank, train_step


def train(recipe: TrainSettings) -> Path:
    """Run the recipe, from the newest train state there is, and return the checkpoint's folder."""
    output = Path(recipe.output)
    model = output / "model"
    deepspeed = ds_config.read(recipe.deepspeed_config) if recipe.deepspeed_config else None
    start_ranks(with_deepspeed=deepspeed is not None)
    try:
        recipe.batch.rows_per_rank(ranks.world_size())
        joined = None if deepspeed is None else ds_config.join(deepspeed, recipe, ranks.world_size())
        # Rank 0 looks at the disk and tells the others: a doubt is then an error on all ranks, not a hang on some.
        experiment = ranks.on_main(lambda: identity(recipe))
        if ranks.on_main(lambda: _finished(recipe, output, model, experiment)):
            say(f"{model}: this run has ended already; its checkpoint is left as it is")
        else:
            _run(recipe, output, model, joined, experiment)
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


def _run(
    recipe: TrainSettings, output: Path, model: Path, deepspeed: dict[str, Any] | None, experiment: dict[str, Any]
) -> None:
    device = ranks.device()
    shards = _open_shards(recipe.unlabelled.shards) if recipe.unlabelled.shards else None
    query_encoder = _initial_encoder(recipe, shards).to(device)
    pairs = _open_pairs(recipe, query_encoder, shards)
    objective = _objective(recipe, query_encoder)
    engine = start_engine(
        query_encoder.train(),
        recipe.optim,
        accumulation=recipe.batch.accumulation,
        deepspeed=deepspeed,
    )
    done = _resume(output, experiment, engine, objective)
    say(_headline(recipe, query_encoder, deepspeed, device, done))

    ranks.on_main(lambda: metrics.cut(output, done))
    log = metrics.MetricsLog(output, recipe.log_every) if ranks.is_main() else None
    shares = samples_of_rank(recipe.batch.size, recipe.batch.accumulation)
    with progress.bar("Training", recipe.steps, "steps", done=done, shown=ranks.is_main()) as bar:
        for step in range(done, recipe.steps):
            began = time.perf_counter()
            _seed_step(recipe.seed, step)
            micro_batches = [pairs.batch(step, samples, recipe.batch.size).to(device) for samples in shares]
            rate = learning_rate(recipe.optim, step, recipe.steps)
            result = train_step(engine, objective, micro_batches, rate)
            _require_finite(result, step + 1)
            ended = step + 1 == recipe.steps
            if log is not None:
                seconds = time.perf_counter() - began
                log.add(step + 1, result, pairs=recipe.batch.size, seconds=seconds, learning_rate=rate, last=ended)
            bar.advance(1, loss=f"{result.loss:.3f}", accuracy=f"{result.accuracy:.2f}")
            if (step + 1) % recipe.saving.every == 0 or ended:
                _save(recipe, output, step + 1, engine, objective, experiment)
    _write_checkpoint(recipe, output, model, engine, query_encoder, deepspeed, experiment)


def _require_finite(result: StepResult, step: int) -> None:
    for name, value in (("loss", result.loss), ("gradient's norm", result.gradient_norm)):
        if not math.isfinite(value):
            raise McontrieverError(
                f"the {name} became {value} at step {step}; nothing was saved from it. Start again in another --output "
                "with a lower optim.lr or a higher objective.temperature"
            )


def _open_shards(path: str) -> Shards:
    """Rank 0 reads every byte once, to verify; the others only map the files."""
    ranks.on_main(lambda: Shards.open(path).fingerprint)
    return Shards.open(path, verify=False)


def _initial_encoder(recipe: TrainSettings, shards: Shards | None) -> Encoder:
    if recipe.init or shards is None:
        made = encoder.load(recipe.init, device="cpu")
    else:
        made = Encoder.random(recipe.model, shards.tokenizer(), seed=recipe.seed)
    made.precision = recipe.precision
    return made


def _open_pairs(
    recipe: TrainSettings, query_encoder: Encoder, shards: Shards | None
) -> UnlabelledPairs | LabelledPairs:
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
    longest = math.ceil(recipe.unlabelled.crop_max * recipe.unlabelled.window) + 2
    _require_room("the longest crop (unlabelled.crop_max x unlabelled.window + 2)", longest, room)
    ours, theirs = query_encoder.tokenizer.fingerprint, shards.tokenizer().fingerprint
    if ours != theirs:
        raise ArtifactError(
            f"{recipe.unlabelled.shards}: tokenised with another tokenizer ({theirs[:12]}) than {recipe.init} has "
            f"({ours[:12]}); prepare the shards again with --tokenizer {recipe.init}"
        )
    crops = UnlabelledPairs(shards, recipe.unlabelled, recipe.seed)
    _require_enough(recipe, sum(crops.windows), "windows of text", recipe.unlabelled.shards)
    return crops


def _require_room(name: str, tokens: int, room: int) -> None:
    if tokens > room:
        raise SettingsError(f"{name} is {tokens} tokens, the model has positions for {room}; lower it")


def _require_enough(recipe: TrainSettings, count: int, what: str, where: str) -> None:
    if count < recipe.batch.size:
        raise SettingsError(f"{where}: holds {count} {what}, fewer than batch.size {recipe.batch.size}; lower it")


def _objective(recipe: TrainSettings, query_encoder: Encoder) -> Objective:
    if recipe.objective.kind == "in_batch":
        return InBatch(recipe.objective)
    if recipe.objective.queue_size < recipe.batch.size:
        raise SettingsError(
            f"objective.queue_size {recipe.objective.queue_size} is smaller than batch.size {recipe.batch.size}: "
            "keys would be dropped unused; make the queue at least as large"
        )
    queue = KeyQueue(recipe.objective.queue_size, query_encoder.contract.dimension, query_encoder.device)
    return Moco(recipe.objective, MomentumEncoder(query_encoder, recipe.objective.momentum), queue)


def _seed_step(seed: int, step: int) -> None:
    """Dropout is a function of (seed, step, rank), as the data is: no generator state has to be saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + ranks.rank()) % 2**63)


def _save(
    recipe: TrainSettings,
    output: Path,
    step: int,
    engine: Engine,
    objective: Objective,
    experiment: dict[str, Any],
) -> None:
    tensors: dict[str, dict[str, Tensor]] = engine.state()
    if isinstance(objective, Moco) and ranks.is_main():
        tensors = {**tensors, "key_encoder": objective.encoder.state_dict(), "queue": objective.queue.state_dict()}
    state.save(output, step, tensors, {"experiment": experiment}, recipe.saving.keep)


def _resume(output: Path, experiment: dict[str, Any], engine: Engine, objective: Objective) -> int:
    path, complaints = state.newest(output)
    for complaint in complaints:
        say(complaint)
    if path is None:
        return 0
    tensors, meta = state.load(path)
    require_same(path, meta["experiment"], experiment)
    step = int(meta["step"])
    engine.load_state(tensors, step)
    if isinstance(objective, Moco):
        objective.encoder.load_state_dict(tensors["key_encoder"])
        objective.queue.load_state_dict(tensors["queue"])
    say(f"resuming after step {step} from {path}")
    return step


def _finished(recipe: TrainSettings, output: Path, model: Path, experiment: dict[str, Any]) -> bool:
    if not model.exists():
        return False
    meta = artifact.open_artifact(model, "checkpoint", verify=False).meta
    if "experiment" not in meta:
        raise ArtifactError(f"{model}: holds a checkpoint that no training run wrote; choose another --output")
    require_same(model, meta["experiment"], experiment)
    if not recipe.saving.keep_last:
        state.discard_all(output)  # an earlier start may have been killed between the checkpoint and this
    return True


def _write_checkpoint(
    recipe: TrainSettings,
    output: Path,
    model: Path,
    engine: Engine,
    query_encoder: Encoder,
    deepspeed: dict[str, Any] | None,
    experiment: dict[str, Any],
) -> None:
    weights = engine.state()["weights"]

    def write() -> None:
        extra = {"recipe.toml": settings.dump(recipe)}
        if deepspeed is not None:
            extra["deepspeed.json"] = json.dumps(deepspeed, indent=2) + "\n"
        encoder.save(query_encoder, model, weights=weights, extra_files=extra, meta={"experiment": experiment})
        if not recipe.saving.keep_last:
            state.discard_all(output)

    ranks.on_main(write)
    say(f"checkpoint written to {model}")


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
