"""What one rank runs in the distributed tests: a few steps of every engine on the same tiny experiment.

Started by torchrun (or alone) with: OUT CASE[,CASE…]. A case is
[ENGINE>]ENGINE[_sharded]:OBJECTIVE[:PRECISION[:ACCUMULATION[:ARCHITECTURE]]], ENGINE being `plain` or the name of a
file in ds_configs, or of one beside this; `_sharded` spreads the momentum encoder over the ranks also where it would be
whole. ACCUMULATION `unsteady` computes steps in 1, 2 and 4 micro-batches by turns, and before the second and the fifth
one that is refused. ARCHITECTURE `checkpointed` is XLM-R with activation checkpointing. Half-way the state is saved and
read back. Rank 0 writes losses, gradient norms and final weights to OUT/<case>.
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
from mcontriever.encoder.contract import Contract
from mcontriever.encoder.model import ARCHITECTURES
from mcontriever.objectives import KeyQueue, ObjectiveSettings, ShardedMomentumEncoder
from mcontriever.pairs import LabelledSettings, Packed, PairBatch, UnlabelledSettings
from mcontriever.training import BatchSettings, TrainSettings, ds_config, loop
from mcontriever.training.engine import start_engine
from mcontriever.training.loss_scale import LossScale
from mcontriever.training.opening import key_encoder
from mcontriever.training.saving import Saver
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.step import InBatch, Moco, samples_of_rank, train_step
from mcontriever.training.zero_engine import prepare_deepspeed

ROOT = pathlib.Path(__file__).parents[2]
STEPS, BATCH, QUEUE = 6, 8, 20
LossScale.FIRST = 2.0**18  # overflows at the first gradient, and soon no more
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


def make_encoder(architecture: str, tokenizer: Tokenizer) -> Encoder:
    if architecture in ("xlm-roberta", "checkpointed"):
        shape = ModelSettings(layers=2, hidden=32, heads=2, intermediate=64, max_positions=40, dropout=0.0)
        made = Encoder.random(shape, tokenizer, seed=1)
        made.checkpoint_activations(architecture == "checkpointed")
        return made
    config = ARCHITECTURES[architecture][0](
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.bos,
        pad_token_id=tokenizer.pad,
        eos_token_id=tokenizer.eos,
    )
    torch.manual_seed(1)
    return Encoder(config, Contract.of(config, tokenizer), tokenizer)


def file_of(engine: str) -> str:
    shipped = ROOT / "ds_configs" / f"{engine}.json"
    return str(shipped if shipped.exists() else pathlib.Path(__file__).with_name(shipped.name))


def build(case: str, tokenizer: Tokenizer):
    words = case.split(":")
    words += ["", "", "fp32", "1", "xlm-roberta"][len(words) :]
    engine_name, objective_name, precision, accumulation, architecture = words
    sharded = engine_name.endswith("_sharded") or engine_name.startswith("zero3")
    engine_name = engine_name.removesuffix("_sharded")
    accumulation = 1 if accumulation == "unsteady" else int(accumulation)
    config = "" if engine_name == "plain" else file_of(engine_name)
    settings = recipe(precision, accumulation, config)
    encoder = make_encoder(architecture, tokenizer)
    encoder.precision = precision
    objective_settings = ObjectiveSettings(kind=objective_name, queue_size=QUEUE, momentum=0.9, temperature=0.5)
    if objective_name == "moco":
        queue = KeyQueue(QUEUE, encoder.contract.dimension)
        objective = Moco(objective_settings, key_encoder(encoder, 0.9, sharded=sharded), queue)
    else:
        objective = InBatch(objective_settings)
    joined = ds_config.join(ds_config.read(config), settings, ranks.world_size()) if config else None
    engine = start_engine(encoder.train(), OPTIM, accumulation=accumulation, deepspeed=joined, precision=precision)
    return engine, objective, settings


def run(engine, objective, settings, pairs, first, last, unsteady):
    results = []
    for step in range(first, last):
        count = (1, 2, 4)[step % 3] if unsteady else settings.batch.accumulation
        shares = samples_of_rank(settings.batch.size, count)
        batches = [pairs.batch(step, share, settings.batch.size) for share in shares]
        if unsteady and step % 3 == 1:
            refused = [pairs.batch(step + 100, share, settings.batch.size) for share in shares]
            train_step(engine, objective, refused, OPTIM.lr, lambda loss: False)
        skipped = {} if engine.scale is None else {"skipped": engine.scale.skipped}
        results.append(dataclasses.asdict(train_step(engine, objective, batches, OPTIM.lr)) | skipped)
    return results


def write(folder, name, engine):
    weights = engine.state()["weights"]
    if ranks.is_main():
        save_file(weights, folder / f"{name}.safetensors")


def saver(folder, settings, engine, objective):
    return Saver(dataclasses.replace(settings, output=str(folder)), {}, engine.module, engine, objective)


def go_on(folder, case, tokenizer, pairs):
    """A fresh engine takes the state that lies in the folder and walks the second half."""
    engine, objective, settings = build(case, tokenizer)
    assert saver(folder, settings, engine, objective).resume() == STEPS // 2
    return engine, run(engine, objective, settings, pairs, STEPS // 2, STEPS, "unsteady" in case)


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
        results = run(engine, objective, settings, pairs, 0, STEPS // 2, "unsteady" in case)
        # Half-way the whole state goes through its files into fresh objects: what follows must not notice.
        saver(folder, settings, engine, objective).save(STEPS // 2)
        resumed_engine, resumed = go_on(folder, second, tokenizer, pairs)
        write(folder, "resumed", resumed_engine)
        uninterrupted = run(engine, objective, settings, pairs, STEPS // 2, STEPS, "unsteady" in case)
        write(folder, "weights", engine)
        memory, held = {}, []
        if isinstance(objective, Moco):
            memory = objective.encoder.state_dict()
        if isinstance(objective, Moco) and isinstance(objective.encoder, ShardedMomentumEncoder):
            held = ranks.gather(torch.tensor([[objective.encoder.held(), objective.encoder.most_gathered]])).tolist()
        if ranks.is_main():
            content = {"held": held, "results": results + uninterrupted, "resumed": results + resumed}
            (folder / "results.json").write_text(json.dumps(content))
            if isinstance(objective, Moco):
                keys = {name: value.clone() for name, value in memory.items()}
                save_file(keys | {"queue": objective.queue.keys.clone()}, folder / "memory.safetensors")
    ranks.stop()


if __name__ == "__main__":
    main()
    os._exit(0)  # for the reason given in mcontriever/train.py
