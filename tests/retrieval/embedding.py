"""What the tests of embedding share: a tiny model, passages, and what one run is asked for."""

import json
import random

import torch

from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.retrieval import EmbedSettings

WORDS = "river mountain lake bridge tower garden market harbour castle forest desert island".split()
COUNT, SHARD = 23, 4


def make_encoder(tokenizer, seed, max_positions=66):
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=max_positions)
    encoder = Encoder.random(shape, tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # fresh weights give all texts about the same vector
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    return encoder.eval()


def make_model(folder, tokenizer, seed):
    save(make_encoder(tokenizer, seed, max_positions=258), folder)


def rows(count=COUNT):
    chosen = random.Random(0)
    return [
        {"_id": f"p{number}", "title": "", "text": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 12)))}
        for number in range(count)
    ]


def write(file, lines):
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def asked(models, corpus, out, model=1, **changes):
    plain = {"checkpoint": str(models / str(model)), "corpus": str(corpus), "out": str(out), "shard_passages": SHARD}
    return EmbedSettings(**(plain | changes))


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
