"""What a whole run leaves in its sinks: the very numbers of metrics.jsonl, each once, whatever fails or is resumed."""

import dataclasses
import pathlib

import pytest

from mcontriever.training import metrics, train
from mcontriever.training.settings import EvaluationSettings, LoggingSettings
from mcontriever.training.sinks import TensorBoard

SAMPLE = pathlib.Path(__file__).parents[2] / "mcontriever" / "sample"
MEASURED = EvaluationSettings(data=str(SAMPLE), pairs=("sw-sw",), every=4, queries=5, passages=20)


@pytest.fixture
def scalars():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


def logged(output, name, file=metrics.NAME):
    return [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in metrics.read(output / file)]


def test_tensorboard_holds_what_metrics_hold_and_a_resumed_run_each_step_once(
    recipe, shards, tmp_path, scalars, killed_at
):
    asked = recipe(
        shards, tmp_path / "run", logging=LoggingSettings(tensorboard=True, gemm_tflops=0.1), evaluation=MEASURED
    )
    with killed_at(5):
        train(dataclasses.replace(asked, saving=dataclasses.replace(asked.saving, every=3)))  # after the line of step 4
    train(asked)
    told = scalars(tmp_path / "run")
    for name in ("loss", "key_std", "learning_rate", "skipped"):
        assert told[f"training/{name}"] == logged(tmp_path / "run", name), name
    for name in ("gemm_share", "memory_gib", "seconds_waiting"):
        assert told[f"machine/{name}"] == logged(tmp_path / "run", name), name
    assert [step for step, _ in told["training/loss"]] == [2, 4, 6]
    assert told["evaluation/MRR@10 mean"] == logged(tmp_path / "run", "MRR@10 mean", metrics.EVALUATION)
    assert [step for step, _ in told["evaluation/MRR@10 mean"]] == [0, 4, 6]
    shares = [told[f"languages/{language}"] for language in ("en", "sw")]
    assert [a + b for (_, a), (_, b) in zip(*shares, strict=True)] == pytest.approx([1.0] * 3)


def test_a_sink_that_breaks_does_not_end_the_run(recipe, shards, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")

    def full(self, step, values):
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorBoard, "log", full)
    train(recipe(shards, tmp_path / "run", logging=LoggingSettings(tensorboard=True, gemm_share=False)))
    assert [line["step"] for line in metrics.read(tmp_path / "run" / metrics.NAME)] == [2, 4, 6]
    assert all("gemm_share" not in line for line in metrics.read(tmp_path / "run" / metrics.NAME))
    said = capsys.readouterr().err
    assert said.count("TensorBoard: No space left on device; nothing more is sent there, metrics.jsonl goes on") == 1
    assert (tmp_path / "run" / "model").is_dir()


def test_a_full_disk_under_the_metrics_themselves_is_an_error(recipe, shards, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(metrics, "append", full)
    with pytest.raises(OSError, match="No space left"):
        train(recipe(shards, tmp_path / "run"))
