"""A corpus and a recipe so small that a whole run takes a moment, and a kill on the way."""

import contextlib
import itertools
import json

import pytest

from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.encoder import ModelSettings
from mcontriever.objectives import ObjectiveSettings
from mcontriever.pairs import UnlabelledSettings
from mcontriever.training import BatchSettings, SavingSettings, TrainSettings, loop
from mcontriever.training.schedule import OptimSettings

WORDS = "river mountain lake bridge tower garden market harbour castle forest desert island valley meadow".split()


@pytest.fixture(scope="session")
def words():
    return WORDS


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for language, step in (("en", 1), ("sw", 3)):
        rows = []
        for number in range(24):
            text = " ".join(WORDS[(number + step * i) % len(WORDS)] + str(number) for i in range(12))
            rows.append(json.dumps({"_id": f"{number}.{language}", "article": str(number), "text": text}))
        (folder / f"{language}.jsonl").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(PrepareSettings(corpus=str(folder), out=str(out), vocab_size=64))
    return out


@pytest.fixture(scope="session")
def recipe():
    """A function of shards, output and whatever is to be otherwise."""

    def made(shards, output, **changes):
        given = {
            "output": str(output),
            "steps": 6,
            "log_every": 2,
            "model": ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66, dropout=0.1),
            "unlabelled": UnlabelledSettings(shards=str(shards), window=64, comparable=0.5),
            "objective": ObjectiveSettings(queue_size=16, momentum=0.9),
            "optim": OptimSettings(lr=1e-3, warmup=2),
            "batch": BatchSettings(size=8),
            "saving": SavingSettings(every=2, keep=2),
        }
        return TrainSettings(**(given | changes))

    return made


@pytest.fixture
def killed_at(monkeypatch):
    """A function of a step's number: the run inside is interrupted instead of taking that step."""

    @contextlib.contextmanager
    def interrupting(number):
        real, calls = loop.train_step, itertools.count(1)

        def step(*given):
            if next(calls) == number:
                raise KeyboardInterrupt
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", step)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupting
