"""One rank of the test that holds --plan against what is really there. Started by torchrun with: OUT ENGINE[,ENGINE…].

For each engine a few steps are taken, then every tensor that engine and objective keep is added up, part by part; and
once more while a step runs, at its largest. Rank 0 writes both beside the plan's figures to OUT/<engine>.json.
"""

import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch

from mcontriever import ranks
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings
from mcontriever.objectives import KeyQueue, ObjectiveSettings
from mcontriever.pairs import Packed, PairBatch
from mcontriever.training import BatchSettings, TrainSettings, ds_config, loop
from mcontriever.training.engine import start_engine
from mcontriever.training.footprint import LiveBytes
from mcontriever.training.opening import key_encoder
from mcontriever.training.plan import Plan
from mcontriever.training.settings import PlanSettings
from mcontriever.training.step import Moco, train_step
from mcontriever.training.zero_engine import prepare_deepspeed

ROOT = pathlib.Path(__file__).parents[2]
MANY, FEW, TOKENS, QUEUE = 32, 2, 24, 4096  # rows of which activations are the most of all, and the least
# The shipped sizes are for models a thousand times as large.
SMALL = {
    "reduce_bucket_size": 100_000,
    "stage3_prefetch_bucket_size": 20_000,
    "stage3_max_live_parameters": 60_000,
    "stage3_param_persistence_threshold": 300,
}


def storages(tensors):
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def kept(engine, objective, stage):
    """Bytes by part; what lies in one storage counts once, where it is named first."""
    parameters = list(engine.module.parameters())
    zero = getattr(engine, "_optimizer", None)
    inner = getattr(zero, "optimizer", zero)
    parts = {"weights": [p.ds_tensor for p in parameters] if stage == 3 else parameters}
    parts["master weights"], parts["gradients"], parts["reduce buckets"] = [], [], []
    if stage in (1, 2):
        parts["master weights"] = zero.single_partition_of_fp32_groups
    if stage == 3:
        parts["master weights"] = zero.fp32_partitioned_groups_flat
        parts["gradients"] = [zero.grad_partitions_flat_buffer]
        parts["reduce buckets"] = [bucket.buffer for bucket in zero.ipg_buckets.values()]
    parts["moments"] = [state[name] for state in inner.state.values() for name in ("exp_avg", "exp_avg_sq")]
    encoder = objective.encoder
    parts["key encoder"] = list(getattr(encoder, "_parts", {}).values()) or list(encoder.module.parameters())
    parts["queue"] = [objective.queue.keys, objective.queue.groups]
    seen, sizes = set(), {}
    for name, tensors in parts.items():
        found = storages(tensors)
        sizes[name] = sum(size for key, size in found.items() if key not in seen)
        seen |= found.keys()
    return sizes


def settle():
    """Gloo's threads hold a message's tensor until they next run, on busy cores beyond the collective's return."""
    time.sleep(0.5)
    gc.collect()


def everything():
    settle()
    return [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]


@contextlib.contextmanager
def watched(engine, method, live):
    """The bytes alive whenever the engine's method is called."""
    seen, real = [], getattr(engine, method)
    setattr(engine, method, lambda *arguments: (settle(), seen.append(live.now), real(*arguments))[2])
    yield seen
    delattr(engine, method)


def measure(folder, name, tokenizer):
    config = ""
    if name != "plain":
        content = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
        zero = content["zero_optimization"]
        zero |= {key: size for key, size in SMALL.items() if key in zero}
        config = str(folder / f"{name}.ds.json")
        pathlib.Path(config).write_text(json.dumps(content))
    recipe = TrainSettings(
        plan=True,
        deepspeed_config=config,
        model=ModelSettings(layers=3, hidden=64, heads=2, intermediate=256, max_positions=40),
        objective=ObjectiveSettings(queue_size=QUEUE),
        batch=BatchSettings(size=MANY * ranks.world_size()),
        planning=PlanSettings(tokens=TOKENS, vocabulary=tokenizer.vocab_size),
    )
    joined = ds_config.join(ds_config.read(config), recipe, ranks.world_size()) if config else None
    stage = ds_config.stage_of(joined)
    encoder = Encoder.random(recipe.model, tokenizer, seed=1)
    queue = KeyQueue(QUEUE, encoder.contract.dimension)
    objective = Moco(recipe.objective, key_encoder(encoder, 0.9, sharded=stage == 3), queue)
    engine = start_engine(encoder.train(), recipe.optim, accumulation=1, deepspeed=joined)
    random = np.random.default_rng(3)

    def batch(rows):
        sides = [Packed.of(list(random.integers(5, tokenizer.vocab_size, (rows, TOKENS)))) for _ in range(2)]
        languages = torch.zeros(rows, dtype=torch.long)
        return PairBatch(*sides, torch.from_numpy(random.integers(0, 10**9, rows)), languages, ("xx",))

    for _ in range(3):
        train_step(engine, objective, [batch(MANY)], 1e-3)
    content = {"kept": kept(engine, objective, stage), "plan": {}, "moving": {}, "before the update": {}}
    for rows in (MANY, FEW):
        step = [batch(rows)]
        with LiveBytes(everything()) as live, watched(engine, "step", live) as seen:
            train_step(engine, objective, step, 1e-3)
        planned = Plan.of(dataclasses.replace(recipe, batch=BatchSettings(size=rows * ranks.world_size())))
        content["plan"][rows] = [dataclasses.asdict(part) for part in planned.memory()]
        content["moving"][rows] = live.most
        content["before the update"][rows] = seen[0]
    if ranks.is_main():
        (folder / f"{name}.json").write_text(json.dumps(content))


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    prepare_deepspeed()
    loop.start_ranks(with_deepspeed=True)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for name in sys.argv[2].split(","):
        measure(folder, name, tokenizer)
    ranks.stop()


if __name__ == "__main__":
    main()
    os._exit(0)  # for the reason given in mcontriever/train.py
