"""Evaluation on the way: its numbers are those of the harness, and training does not notice it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.encoder import ModelSettings
from mcontriever.errors import DataError, SettingsError, UsageError
from mcontriever.evaluation import Measure, evaluate, mean
from mcontriever.objectives import ObjectiveSettings
from mcontriever.pairs import UnlabelledSettings
from mcontriever.training import BatchSettings, SavingSettings, TrainSettings, metrics, train
from mcontriever.training import loop as loop_module
from mcontriever.training.engine import start_engine
from mcontriever.training.evaluate import Evaluator, borrowed
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.settings import EvaluationSettings

SAMPLE = pathlib.Path(__file__).parents[2] / "mcontriever" / "sample"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(PrepareSettings(corpus=str(SAMPLE / "corpus.sw.jsonl"), out=str(out), vocab_size=400))
    return out


def recipe(shards, output, evaluation=None, **changes):
    given = {
        "output": str(output),
        "steps": 4,
        "log_every": 2,
        "model": ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66, dropout=0.1),
        "unlabelled": UnlabelledSettings(shards=str(shards), window=64),
        "objective": ObjectiveSettings(queue_size=16, momentum=0.9),
        "optim": OptimSettings(lr=1e-3, warmup=2),
        "batch": BatchSettings(size=8),
        "saving": SavingSettings(every=2, keep=2),
        "evaluation": evaluation or EvaluationSettings(),
    }
    return TrainSettings(**(given | changes))


def small(**changes):
    given = {"data": str(SAMPLE), "pairs": ("sw-sw", "en-sw"), "every": 2, "queries": 12, "passages": 40}
    return EvaluationSettings(**(given | changes))


def lines(output, name=metrics.EVALUATION):
    return [{k: v for k, v in line.items() if k not in metrics.MACHINE} for line in metrics.read(output / name)]


def weights(model):
    return load_file(model / "model.safetensors")


@pytest.fixture(scope="module")
def watched(shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("watched") / "run"
    return output, weights(train(recipe(shards, output, small())))


def test_training_is_the_same_bit_for_bit_whether_or_not_it_is_measured(shards, watched, tmp_path):
    output, expected = watched
    assert [line["step"] for line in lines(output)] == [0, 2, 4]
    alone = weights(train(recipe(shards, tmp_path / "alone")))
    assert all(torch.equal(expected[name], alone[name]) for name in expected)
    assert lines(output, metrics.NAME) == lines(tmp_path / "alone", metrics.NAME)
    assert not (tmp_path / "alone" / metrics.EVALUATION).exists()
    # nor is it another experiment: the run that was measured goes on without
    assert train(recipe(shards, output)) == output / "model"


def test_killed_and_resumed_each_step_is_measured_once(shards, watched, tmp_path, killed_at):
    output, _ = watched
    with killed_at(4):
        train(recipe(shards, tmp_path / "killed", small()))
    assert [line["step"] for line in lines(tmp_path / "killed")] == [0, 2]
    train(recipe(shards, tmp_path / "killed", small()))
    assert lines(tmp_path / "killed") == lines(output)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_harness(shards, tmp_path):
    output = tmp_path / "run"
    chosen = EvaluationSettings(
        data=str(SAMPLE), pairs=("sw-sw", "en-sw"), measures=("MRR@10", "Recall@100"), first=False
    )
    train(recipe(shards, output, chosen))
    command = [sys.executable, "eval/folder.py", "--data", str(SAMPLE), "--checkpoint", f"it={output / 'model'}"]
    command += ["--pairs", "sw-sw,en-sw", "--bm25", "false", "--k", "10,100", "--out", str(tmp_path / "eval")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    told = json.loads((tmp_path / "eval" / "results.json").read_text())["values"]
    expected = {f"{row['measure']} {row['task']}": row["value"] for row in told}
    (line,) = lines(output)
    assert line["step"] == 4
    for name in ("MRR@10 sw-sw", "MRR@10 en-sw", "Recall@100 sw-sw", "Recall@100 en-sw"):
        assert line[name] == pytest.approx(expected[name], abs=1e-6), name
    assert line["MRR@10 mean"] == pytest.approx((line["MRR@10 sw-sw"] + line["MRR@10 en-sw"]) / 2, abs=1e-6)


class Told:
    evaluated_to = -1

    def evaluated(self, step, measures, seconds):
        self.evaluated_to = step


@pytest.fixture
def encoder(shards):
    settings = recipe(shards, "unused")
    return loop_module.opening.initial_encoder(settings, loop_module.opening.open_shards(settings))


def test_the_trained_weights_are_used_and_given_back(encoder):
    evaluator = Evaluator(small(), encoder)
    engine = start_engine(encoder.train(), OptimSettings(), accumulation=1, deepspeed=None)
    before = evaluator.maybe(0, engine, Told())
    with borrowed(engine, evaluator._shell) as shell:
        texts = ["mto mrefu", "mlima"]
        expected = encoder.encode_queries(texts)
        assert (shell.encode_queries(texts) == expected).all()
        assert not shell.training
        assert shell._frozen is not None
    assert shell._frozen is None, "a second copy of the layers would be kept through training"
    assert encoder.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in encoder.parameters())
    assert all(parameter.is_meta for parameter in evaluator._shell.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert evaluator.maybe(2, engine, Told()) != before


def test_it_is_measured_when_it_is_time_and_not_again(encoder):
    evaluator = Evaluator(small(every=4), encoder)
    engine = start_engine(encoder, OptimSettings(), accumulation=1, deepspeed=None)
    log = Told()
    due = [step for step in range(11) if evaluator.maybe(step, engine, log, last=step == 10)]
    assert due == [0, 4, 8, 10]
    assert evaluator.maybe(8, engine, log) is None, "it is written down already"
    late = Evaluator(small(first=False), encoder)
    assert late.maybe(0, engine, Told()) is None


def test_search_is_exact_against_a_slow_one(encoder):
    evaluator = Evaluator(small(measures=("MRR@10", "Recall@5", "nDCG@10")), encoder)
    engine = start_engine(encoder, OptimSettings(), accumulation=1, deepspeed=None)
    measured = evaluator.maybe(0, engine, Told())
    encoder.eval()
    for task in evaluator._tasks:
        passages = encoder.encode_passages([(passage.title, passage.text) for passage in task.passages])
        questions = {query.id: encoder.encode_queries([query.text])[0] for query in task.queries}
        run = {
            query.id: {
                passage.id: float(questions[query.id] @ vector)
                for passage, vector in zip(task.passages, passages, strict=True)
            }
            for query in task.queries
        }
        for name in ("MRR@10", "Recall@5", "nDCG@10"):
            measure = Measure.parse(name)
            expected = mean(evaluate(run, task.qrels, [measure])[measure])
            assert measured[f"{name} {task.name}"] == pytest.approx(expected), (name, task.name)


def test_fewer_passages_still_hold_every_right_one_and_keep_their_order(encoder):
    whole = Evaluator(small(queries=0, passages=0), encoder)._tasks[0]
    part = Evaluator(small(queries=12, passages=40), encoder)._tasks[0]
    ids = [passage.id for passage in part.passages]
    right = {passage for judged in part.qrels.values() for passage, grade in judged.items() if grade > 0}
    assert (len(part.queries), len(ids)) == (12, 40)
    assert part.queries == whole.queries[:12]
    assert list(part.qrels) == [query.id for query in part.queries]
    assert right <= set(ids)
    assert ids == [passage.id for passage in whole.passages if passage.id in ids]
    with pytest.raises(SettingsError, match=r"evaluation.passages 2: \d+ are relevant to the queries of sw-sw alone"):
        Evaluator(small(queries=12, passages=2, measures=("MRR@1",)), encoder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "/nowhere"}, DataError, "/nowhere: no such folder"),
        ({"split": "tset"}, UsageError, "did you mean 'test'"),
        ({"pairs": ("xx-sw",)}, UsageError, "no queries.xx"),
        ({"measures": ("Recall@100",)}, SettingsError, "Recall@100 cannot be measured, for sw-sw searches 40 passages"),
    ],
)
def test_what_cannot_be_measured_is_an_error_before_training(encoder, changes, error, message):
    with pytest.raises(error, match=message):
        Evaluator(small(**changes), encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ("MAP@10",)}, "unknown measure 'MAP'"),
        ({"measures": ()}, "evaluation.measures is empty"),
        ({"pairs": ("aren",)}, "pair 'aren' must look like ar-en"),
        ({"every": 0}, "evaluation.every must lie in"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(small(), **changes)
