"""What one rank runs in the distributed tests: a few steps of every engine on the same tiny experiment.

Started by torchrun (or alone) with: OUT CASE[,CASE…]. A case is ENGINE:OBJECTIVE[:PRECISION[:ACCUMULATION]], ENGINE
being `plain` or the name of a file in ds_configs. Rank 0 writes losses, gradient norms and final weights to
OUT/<case>.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

from mcontriever import ranks
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings
from mcontriever.objectives import KeyQueue, MomentumEncoder, ObjectiveSettings
from mcontriever.pairs import LabelledSettings, Packed, PairBatch, UnlabelledSettings
from mcontriever.training import BatchSettings, TrainSettings, ds_config
from mcontriever.training.engine import prepare_deepspeed, start_engine
from mcontriever.training.loop import start_ranks
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.step import InBatch, Moco, samples_of_rank, train_step

ROOT = pathlib.Path(__file__).parents[2]
STEPS, BATCH, QUEUE = 6, 8, 20
OPTIM = OptimSettings(lr=2e-3, warmup=0, clip=0.5)


class Pairs:
    """Sample n is a function of n alone: two noisy copies of a random sequence."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def batch(self, step, samples, size):
        queries, passages = [], []
        for sample in samples:
            random = np.random.default_rng([7, step * size + int(sample)])
            text = random.integers(5, self.vocabulary, random.integers(4, 12))
            queries.append(text[: random.integers(2, len(text) + 1)])
            passages.append(text[random.integers(0, len(text) - 1) :])
        group = torch.tensor([step * size + int(sample) for sample in samples])
        language = torch.zeros(len(group), dtype=torch.long)
        return PairBatch(Packed.of(queries), Packed.of(passages), group, language, ("xx",))


def recipe(precision: str, accumulation: int, config: str) -> TrainSettings:
    return TrainSettings(
        output="unused",
        precision=precision,
        deepspeed_config=config,
        optim=OPTIM,
        batch=BatchSettings(size=BATCH, accumulation=accumulation),
        unlabelled=UnlabelledSettings(shards="unused"),
        labelled=LabelledSettings(),
    )


def build(case: str, tokenizer: Tokenizer):
    words = case.split(":")
    engine_name, objective_name, precision, accumulation = words + ["", "", "fp32", "1"][len(words) :]
    config = "" if engine_name == "plain" else str(ROOT / "ds_configs" / f"{engine_name}.json")
    settings = recipe(precision, int(accumulation), config)
    shape = ModelSettings(layers=2, hidden=32, heads=2, intermediate=64, max_positions=40, dropout=0.0)
    encoder = Encoder.random(shape, tokenizer, seed=1)
    objective_settings = ObjectiveSettings(kind=objective_name, queue_size=QUEUE, momentum=0.9, temperature=0.5)
    if objective_name == "moco":
        queue = KeyQueue(QUEUE, encoder.contract.dimension)
        objective = Moco(objective_settings, MomentumEncoder(encoder, 0.9), queue, precision)
    else:
        objective = InBatch(objective_settings)
    joined = ds_config.join(ds_config.read(config), settings, ranks.world_size()) if config else None
    engine = start_engine(encoder.train(), OPTIM, precision=precision, accumulation=int(accumulation), deepspeed=joined)
    return engine, objective, settings


def run(engine, objective, settings, pairs, first, last):
    shares = samples_of_rank(settings.batch.size, settings.batch.accumulation)
    results = []
    for step in range(first, last):
        batches = [pairs.batch(step, share, settings.batch.size) for share in shares]
        results.append(dataclasses.asdict(train_step(engine, objective, batches, OPTIM.lr)))
    return results


def main() -> None:
    out, cases = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
    prepare_deepspeed()
    start_ranks(with_deepspeed=True)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(out / "tokenizer")
    pairs = Pairs(tokenizer.vocab_size)
    for case in cases:
        engine, objective, settings = build(case, tokenizer)
        results = run(engine, objective, settings, pairs, 0, STEPS // 2)
        # Half-way the whole state moves into fresh objects: what follows must not notice.
        state = ranks.from_main(engine.state())
        fresh, fresh_objective, _ = build(case, tokenizer)
        fresh.load_state(state, STEPS // 2)
        if isinstance(objective, Moco):
            fresh_objective.encoder.load_state_dict(objective.encoder.state_dict())
            fresh_objective.queue.load_state_dict(objective.queue.state_dict())
        uninterrupted = run(engine, objective, settings, pairs, STEPS // 2, STEPS)
        resumed = run(fresh, fresh_objective, settings, pairs, STEPS // 2, STEPS)
        weights, again = engine.state()["weights"], fresh.state()["weights"]
        if ranks.is_main():
            folder = out / case.replace(":", "-")
            folder.mkdir(parents=True)
            content = {"results": results + uninterrupted, "resumed": results + resumed}
            (folder / "results.json").write_text(json.dumps(content))
            save_file(weights, folder / "weights.safetensors")
            save_file(again, folder / "resumed.safetensors")
            if isinstance(objective, Moco):
                keys = {name: value.clone() for name, value in objective.encoder.state_dict().items()}
                save_file(keys | {"queue": objective.queue.keys.clone()}, folder / "memory.safetensors")
    ranks.stop()


if __name__ == "__main__":
    main()
