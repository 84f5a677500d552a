"""What one rank runs for `test_reference.py`: MoCo for all steps under one engine after the other.

Started by torchrun with: OUT ENGINE[,ENGINE…]. OUT holds numbers.json, tokenizer and batches.json; rank 0 adds the
weights that all begin with and each engine's losses.
"""

import json
import os
import pathlib
import sys

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
from mcontriever.training.schedule import OptimSettings, learning_rate
from mcontriever.training.step import Moco, train_step
from mcontriever.training.zero_engine import prepare_deepspeed

ROOT = pathlib.Path(__file__).parents[2]


class Pairs:
    """The batches of the file."""

    def __init__(self, steps) -> None:
        self.steps = steps

    def batch(self, step, samples, size):
        rows = [self.steps[step][sample] for sample in samples]
        sides = [Packed.of([row[side] for row in rows]) for side in ("query", "passage")]
        group = torch.tensor([row["group"] for row in rows])
        return PairBatch(*sides, group, torch.zeros(len(rows), dtype=torch.long), ("xx",))


def main() -> None:
    out, engines = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
    numbers, batches = (json.loads((out / f"{name}.json").read_text()) for name in ("numbers", "batches"))
    prepare_deepspeed()
    loop.start_ranks(with_deepspeed=True)
    torch.set_num_threads(1)
    tokenizer, pairs = Tokenizer.load(out / "tokenizer"), Pairs(batches)
    for name in engines:
        config = "" if name == "plain" else str(ROOT / "ds_configs" / f"{name}.json")
        recipe = TrainSettings(
            output="unused",
            steps=len(batches),
            deepspeed_config=config,
            model=ModelSettings(**numbers["model"], dropout=0.0),
            objective=ObjectiveSettings(**numbers["objective"]),
            optim=OptimSettings(**numbers["optim"]),
            batch=BatchSettings(size=len(batches[0])),
            unlabelled=UnlabelledSettings(shards="unused"),
        )
        encoder = Encoder.random(recipe.model, tokenizer, seed=1)
        if ranks.is_main():
            initial = {key: value.clone() for key, value in encoder.model.state_dict().items()}
            save_file(initial, out / "initial.safetensors")
            encoder.config.save_pretrained(out / "initial")
        momentum = key_encoder(encoder, recipe.objective.momentum, sharded=name == "zero3")
        objective = Moco(recipe.objective, momentum, KeyQueue(recipe.objective.queue_size, recipe.model.hidden))
        joined = ds_config.join(ds_config.read(config), recipe, ranks.world_size()) if config else None
        engine = start_engine(encoder.train(), recipe.optim, accumulation=1, deepspeed=joined)
        losses = []
        for step in range(recipe.steps):
            batch = micro_batches.of_step(step, pairs, recipe.batch, ranks.device())
            losses.append(train_step(engine, objective, batch, learning_rate(recipe.optim, step, recipe.steps)).loss)
        if ranks.is_main():
            (out / f"{name}.json").write_text(json.dumps(losses))
    ranks.stop()


if __name__ == "__main__":
    main()
    os._exit(0)  # for the reason given in mcontriever/train.py
