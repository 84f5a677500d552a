"""What one rank runs for `test_step_cuts.py`: a step cut in many ways under every engine.

Started by torchrun (or alone) with: OUT CASE[,CASE…]. A case is ENGINE:WAY[:WAY…], ENGINE being `plain` or the name of
a file in ds_configs, and the ways those of `WAYS`. Rank 0 writes the first step's gradient, the results of all steps
and, for MoCo, the queue to OUT/<case>.
"""

import dataclasses
import json
import os
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

from mcontriever import ranks
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings
from mcontriever.objectives import KeyQueue, ObjectiveSettings
from mcontriever.pairs import Packed, PairBatch, UnlabelledSettings
from mcontriever.training import BatchSettings, TrainSettings, ds_config, loop, micro_batches
from mcontriever.training.engine import start_engine
from mcontriever.training.opening import key_encoder
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.step import InBatch, Moco, train_step
from mcontriever.training.zero_engine import prepare_deepspeed

ROOT = pathlib.Path(__file__).parents[2]
STEPS, BATCH, QUEUE = 3, 16, 29
OPTIM = OptimSettings(lr=1e-3, warmup=0, clip=0.0)  # unclipped, the first moment tells the gradient
IN_BATCH = {"kind": "in_batch", "temperature": 4.0}
MOCO = {"kind": "moco", "temperature": 4.0, "queue_size": QUEUE, "momentum": 0.9}
WAYS = {
    "in_batch": {"objective": IN_BATCH},
    "cached": {"objective": IN_BATCH | {"gradient_cache": True}},
    "moco": {"objective": MOCO},
    "warm": {"objective": MOCO | {"warm_start": True}},
    "key_dropout": {"objective": MOCO | {"key_dropout": True}},
    "tokens": {"batch": {"tokens": 50}},
    "accumulation": {"batch": {"accumulation": 4}},
    "dropout": {"model": {"dropout": 0.3}},
    "margin": {"objective": {"loss": "margin", "margin": 3.0, "temperature": ObjectiveSettings.temperature}},
}


class Pairs:
    """Sample n is a function of n alone, and so long that ranks cut their shares at different rows."""

    def batch(self, step, samples, size):
        sides, groups = ([], []), []
        for number in step * size + np.asarray(samples):
            random = np.random.default_rng([3, int(number)])
            for side in sides:
                side.append(random.integers(5, 300, random.integers(3, 20)))
            groups.append(int(random.integers(20)))
        group = torch.tensor(groups)
        return PairBatch(*map(Packed.of, sides), group, torch.zeros(len(group), dtype=torch.long), ("xx",))


def recipe_of(case):
    engine, *ways = case.split(":")
    told = {"objective": {}, "batch": {"size": BATCH}, "model": {"dropout": 0.0}}
    for way in ways:
        for table, values in WAYS[way].items():
            told[table] = told[table] | values
    return TrainSettings(
        output="unused",
        steps=STEPS,
        deepspeed_config="" if engine == "plain" else str(ROOT / "ds_configs" / f"{engine}.json"),
        model=ModelSettings(layers=2, hidden=32, heads=2, intermediate=64, max_positions=40, **told["model"]),
        objective=ObjectiveSettings(**told["objective"]),
        optim=OPTIM,
        batch=BatchSettings(**told["batch"]),
        unlabelled=UnlabelledSettings(shards="unused", window=16),
    )


def make_objective(recipe, encoder, sharded):
    if recipe.objective.kind == "in_batch":
        return InBatch(recipe.objective)
    momentum = key_encoder(encoder, recipe.objective.momentum, sharded=sharded)
    objective = Moco(recipe.objective, momentum, KeyQueue(QUEUE, recipe.model.hidden))
    if not recipe.objective.warm_start:  # with an empty queue the first step would have no gradient
        keys = torch.randn(20, recipe.model.hidden, generator=torch.Generator().manual_seed(4))
        objective.queue.enqueue(keys, torch.arange(20))
    return objective


def run(case, tokenizer, folder):
    recipe, pairs, device = recipe_of(case), Pairs(), ranks.device()
    encoder = Encoder.random(recipe.model, tokenizer, seed=1)
    objective = make_objective(recipe, encoder, "zero3" in case)
    config = recipe.deepspeed_config
    joined = ds_config.join(ds_config.read(config), recipe, ranks.world_size()) if config else None
    engine = start_engine(encoder.train(), OPTIM, accumulation=recipe.batch.accumulation, deepspeed=joined)
    loop._warm_start(recipe, objective, pairs, device)
    tensors = {}
    if isinstance(objective, Moco):
        tensors |= {f"warm.{name}": value.clone() for name, value in objective.queue.state_dict().items()}
    results, cuts = [], []
    for step in range(STEPS):
        loop._seed_step(recipe.seed, step)
        batches = micro_batches.of_step(step, pairs, recipe.batch, device)
        cuts.append(ranks.gather(torch.tensor([[len(batch) for batch in batches]])).tolist())
        results.append(dataclasses.asdict(train_step(engine, objective, batches, OPTIM.lr)))
        if step == 0:
            moments = engine.state()["exp_avg"]
            tensors |= {name: moment / (1 - OPTIM.beta1) for name, moment in moments.items()}
    if isinstance(objective, Moco):
        tensors |= {f"end.{name}": value.clone() for name, value in objective.queue.state_dict().items()}
    if ranks.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"results": results, "cuts": cuts}))
        save_file(tensors, folder / "tensors.safetensors")


def main() -> None:
    out, cases = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
    prepare_deepspeed()
    loop.start_ranks(with_deepspeed=True)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(out / "tokenizer")
    for case in cases:
        run(case, tokenizer, out / case.replace(":", "-"))
    ranks.stop()


if __name__ == "__main__":
    main()
    os._exit(0)  # for the reason given in mcontriever/train.py
