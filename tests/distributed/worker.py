"""What one rank runs in the distributed tests: a few steps of every engine on the same tiny experiment.

Started by torchrun (or alone) with: OUT CASE[,CASE…]. A case is [ENGINE>]ENGINE:OBJECTIVE[:PRECISION[:ACCUMULATION]],
ENGINE being `plain` or the name of a file in ds_configs. Half-way the state is saved and read back. Rank 0 writes
losses, gradient norms and final weights to OUT/<case>.
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
from mcontriever.training import BatchSettings, TrainSettings, ds_config, loop
from mcontriever.training.engine import prepare_deepspeed, start_engine
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
    encoder.precision = precision
    objective_settings = ObjectiveSettings(kind=objective_name, queue_size=QUEUE, momentum=0.9, temperature=0.5)
    if objective_name == "moco":
        queue = KeyQueue(QUEUE, encoder.contract.dimension)
        objective = Moco(objective_settings, MomentumEncoder(encoder, 0.9), queue)
    else:
        objective = InBatch(objective_settings)
    joined = ds_config.join(ds_config.read(config), settings, ranks.world_size()) if config else None
    engine = start_engine(encoder.train(), OPTIM, accumulation=int(accumulation), deepspeed=joined)
    return engine, objective, settings


def run(engine, objective, settings, pairs, first, last):
    shares = samples_of_rank(settings.batch.size, settings.batch.accumulation)
    results = []
    for step in range(first, last):
        batches = [pairs.batch(step, share, settings.batch.size) for share in shares]
        results.append(dataclasses.asdict(train_step(engine, objective, batches, OPTIM.lr)))
    return results


def write(folder, name, engine):
    weights = engine.state()["weights"]
    if ranks.is_main():
        save_file(weights, folder / f"{name}.safetensors")


def go_on(folder, case, tokenizer, pairs):
    """A fresh engine takes the state that lies in the folder and walks the second half."""
    engine, objective, settings = build(case, tokenizer)
    assert loop._resume(folder, {}, engine, objective) == STEPS // 2
    return engine, run(engine, objective, settings, pairs, STEPS // 2, STEPS)


def main() -> None:
    out, cases = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
    prepare_deepspeed()
    loop.start_ranks(with_deepspeed=True)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(out / "tokenizer")
    pairs = Pairs(tokenizer.vocab_size)
    for case in cases:
        # `zero3>plain:moco`: the second half is walked by another engine
        first, _, second = case.rpartition(">")
        first = f"{first}:{second.split(':', 1)[1]}" if first else second
        folder = out / case.replace(":", "-")
        if ranks.is_main():
            folder.mkdir(parents=True, exist_ok=True)
        if (folder / "from").exists():  # states of other ranks, brought here by the test
            engine, _ = go_on(folder / "from", second, tokenizer, pairs)
            write(folder, "resumed", engine)
            continue
        engine, objective, settings = build(first, tokenizer)
        results = run(engine, objective, settings, pairs, 0, STEPS // 2)
        # Half-way the whole state goes through its files into fresh objects: what follows must not notice.
        loop._save(settings, folder, STEPS // 2, engine, objective, {})
        resumed_engine, resumed = go_on(folder, second, tokenizer, pairs)
        write(folder, "resumed", resumed_engine)
        uninterrupted = run(engine, objective, settings, pairs, STEPS // 2, STEPS)
        write(folder, "weights", engine)
        if ranks.is_main():
            content = {"results": results + uninterrupted, "resumed": results + resumed}
            (folder / "results.json").write_text(json.dumps(content))
            if isinstance(objective, Moco):
                keys = {name: value.clone() for name, value in objective.encoder.state_dict().items()}
                save_file(keys | {"queue": objective.queue.keys.clone()}, folder / "memory.safetensors")
    ranks.stop()


if __name__ == "__main__":
    main()
