"""Evaluation over two ranks and in every ZeRO stage: the same numbers, and training that does not notice it."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mcontriever import encoder
from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.training import metrics
from mcontriever.training.engine import start_engine
from mcontriever.training.evaluate import Evaluator
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.settings import EvaluationSettings

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent
SAMPLE = HERE.parents[1] / "mcontriever" / "sample"
ENGINES = ["plain", "zero0", "zero1", "zero2", "zero2_offload", "zero3"]


class Told:
    evaluated_to = -1

    def evaluated(self, step, measures, seconds):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines")
    prepare(PrepareSettings(corpus=str(SAMPLE / "corpus.sw.jsonl"), out=str(out / "shards"), vocab_size=400))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(HERE / "evaluation_worker.py"), str(out), str(out / "shards"), ",".join(ENGINES)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def lines(folder, name):
    return [{k: v for k, v in line.items() if k not in metrics.MACHINE} for line in metrics.read(folder / name)]


@pytest.mark.parametrize("engine", ENGINES)
def test_training_does_not_notice_that_it_is_measured(trained, engine):
    measured, alone = (
        load_file(trained / name / "model" / "model.safetensors") for name in (engine, f"{engine}-alone")
    )
    assert all(torch.equal(measured[name], alone[name]) for name in measured)
    assert lines(trained / engine, metrics.NAME) == lines(trained / f"{engine}-alone", metrics.NAME)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_numbers_are_those_of_the_weights_whatever_lies_where(trained, engine):
    first, _, last = lines(trained / engine, metrics.EVALUATION)
    assert (first["step"], last["step"]) == (0, 4)
    assert first == lines(trained / "plain", metrics.EVALUATION)[0]
    chosen = EvaluationSettings(data=str(SAMPLE), pairs=("sw-sw", "en-sw"), queries=25, passages=60)
    loaded = encoder.load(trained / engine / "model", device="cpu")
    evaluator = Evaluator(chosen, loaded)
    expected = evaluator.maybe(0, start_engine(loaded, OptimSettings(), accumulation=1, deepspeed=None), Told())
    assert {name: value for name, value in last.items() if name != "step"} == pytest.approx(expected, abs=1e-6)


def test_counts_and_memory_are_those_of_all_ranks(trained):
    first, second = metrics.read(trained / "zero1" / metrics.NAME)
    for line in (first, second):
        assert line["languages"] == {"sw": 16}
        assert line["pairs_per_second"] == pytest.approx(16 / line["seconds"], rel=0.05)
        assert 0.1 < line["memory_gib"] < 10
