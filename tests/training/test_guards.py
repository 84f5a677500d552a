"""A loss that is no number, or leaps, does not reach the weights; its batch is written out; all else goes on."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from mcontriever import artifact, ranks
from mcontriever.errors import McontrieverError
from mcontriever.training import GuardSettings, guards, loop, metrics, state, train
from mcontriever.training.guards import Guard
from mcontriever.training.moco import Moco

NAN = float("nan")


def told(loss=1.0, norm=1.0):
    return type("Result", (), {"loss": loss, "gradient_norm": norm})()


def watching(recipe, tmp_path, monkeypatch, **settings):
    guard = Guard(recipe("shards", tmp_path, guard=GuardSettings(**settings)), None, None)
    monkeypatch.setattr(guard, "_write", lambda *_: "its folder")
    return guard


def sees(guard, step, loss, norm=1.0):
    """One step as the loop takes it."""
    accepted = guard.accepts(torch.tensor(loss))
    return accepted, guard.passes(step, told(loss, norm if accepted else NAN))


def test_a_leap_is_measured_in_deviations_of_the_window(recipe, tmp_path, monkeypatch):
    guard = watching(recipe, tmp_path, monkeypatch, on_nan="skip", spike_sigmas=3.0, window=4)
    assert sees(guard, 1, 100.0) == (True, True), "no window yet, no leap"
    for step, loss in enumerate([1.0, 3.0, 1.0, 3.0], start=2):  # mean 2, deviation 1; the 100 has left the window
        assert sees(guard, step, loss) == (True, True)
    assert sees(guard, 6, 5.1) == (False, False)
    assert sees(guard, 7, 4.9) == (True, True), "3 deviations are at 5; the leap itself is no part of the window"
    assert (guard.skipped, guard.discarded) == (1, 1)


def test_without_sigmas_no_loss_leaps(recipe, tmp_path, monkeypatch):
    guard = watching(recipe, tmp_path, monkeypatch, window=2)
    assert [sees(guard, step, loss) for step, loss in enumerate([1.0, 1.0, 1e30], start=1)] == [(True, True)] * 3


@pytest.mark.parametrize("loss", [NAN, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused_before_the_update(recipe, tmp_path, monkeypatch, loss):
    guard = watching(recipe, tmp_path, monkeypatch)
    assert not guard.accepts(torch.tensor(loss))
    with pytest.raises(
        McontrieverError, match=rf"became {loss} at step 4; .* is in its folder. Go on in this --output"
    ):
        guard.passes(4, told(loss, NAN))


def test_skips_are_counted_and_limited_and_remembered(recipe, tmp_path, monkeypatch):
    guard = watching(recipe, tmp_path, monkeypatch, on_nan="skip", skips=2, spike_sigmas=2.0, window=3)
    assert [sees(guard, step, loss)[1] for step, loss in enumerate([1.0, NAN, 2.0, NAN], start=1)] == [True, False] * 2
    again = watching(recipe, tmp_path, monkeypatch, on_nan="skip", skips=2, spike_sigmas=2.0, window=3)
    again.load_state(json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state() == {"skipped": 2, "discarded": 2, "losses": [1.0, 2.0]}
    with pytest.raises(McontrieverError, match=r"at step 5, and guard.skips = 2 steps were skipped before"):
        sees(again, 5, NAN)


def test_a_step_that_the_loss_scale_has_counted_is_not_counted_twice(recipe, tmp_path, monkeypatch):
    guard = watching(recipe, tmp_path, monkeypatch, on_nan="skip")
    guard._recipe = dataclasses.replace(guard._recipe, precision="fp16")
    assert sees(guard, 1, 1.0, norm=math.inf) == (True, False)
    assert (guard.skipped, guard.discarded) == (1, 0)
    assert sees(guard, 2, NAN) == (False, False)
    assert (guard.skipped, guard.discarded) == (2, 1)


def poison(monkeypatch, at, what):
    """Step number `at` gets a loss or a gradient that is no number; every other step is left as it is."""
    real, seed, steps = Moco.learn, loop._seed_step, []
    monkeypatch.setattr(loop, "_seed_step", lambda *given: (steps.append(given[1] + 1), seed(*given)))

    def learn(self, engine, micro_batches):
        seen = real(self, engine, micro_batches)
        if steps[-1] == at:
            if what == "gradient":
                next(engine.module.parameters()).grad.fill_(NAN)
            else:
                seen = dataclasses.replace(seen, means=seen.means * (NAN if what == "loss" else 1e6))
        return seen

    monkeypatch.setattr(Moco, "learn", learn)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_stop_writes_out_the_batch_and_saves_nothing(recipe, shards, tmp_path, monkeypatch, what):
    poison(monkeypatch, 4, what)
    said = "loss became nan" if what == "loss" else "gradient's norm became nan"
    with pytest.raises(
        McontrieverError, match=rf"the {said} at step 4; .* its batch is in .*bad-batch-00000004"
    ) as stopped:
        train(recipe(shards, tmp_path / "run"))
    assert stopped.value.exit_code == 65
    assert [path.name for path in (tmp_path / "run").glob("state-*")] == ["state-00000002"]
    again = dataclasses.replace(recipe(shards, tmp_path / "run"), guard=GuardSettings(on_nan="skip"))
    assert train(again).is_dir(), "the same --output goes on, as the message says"
    found = artifact.open_artifact(tmp_path / "run" / "bad-batch-00000004", guards.KIND)
    rows = [json.loads(line) for line in found.file("pairs.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == list(range(8))
    assert {row["language"] for row in rows} <= {"en", "sw"}
    assert all(row[side]["length"] == len(row[side]["ids"]) for row in rows for side in ("query", "passage"))
    assert any("r" in row["query"]["text"] for row in rows)
    assert (found.meta["step"], len(found.meta["loss_by_rank"])) == (4, 1)


@pytest.mark.parametrize("what", ["loss", "gradient", "leap"])
def test_a_skipped_step_leaves_everything_as_it_was_and_survives_a_resume(recipe, shards, tmp_path, monkeypatch, what):
    guard = GuardSettings(on_nan="skip", spike_sigmas=100.0 if what == "leap" else 0.0, window=2)
    settings = recipe(shards, tmp_path / "run", guard=guard, log_every=1, saving=recipe(shards, "x").saving)
    poison(monkeypatch, 4, what)
    before = {}
    real = loop.train_step

    def watched(engine, objective, *rest):
        parts = {**engine.state(), "keys": objective.encoder.state_dict(), "queue": objective.queue.state_dict()}
        held = {f"{part}.{name}": value.clone() for part, named in parts.items() for name, value in named.items()}
        before[len(before) + 1] = held
        return real(engine, objective, *rest)

    monkeypatch.setattr(loop, "train_step", watched)
    model = train(settings)
    assert all(torch.equal(before[4][name], before[5][name]) for name in before[4]), "step 4 changed nothing"
    assert any(not torch.equal(before[3][name], before[4][name]) for name in before[4])
    lines = {line["step"]: line for line in metrics.read(tmp_path / "run" / metrics.NAME)}
    assert [lines[step]["skipped"] for step in range(1, 7)] == [0, 0, 0, 1, 0, 0]
    assert [step for step in lines if "fault" in lines[step]] == [4]
    expected = load_file(model / "model.safetensors")

    # the state after step 4 knows that the optimiser has taken three steps, not four
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "run" / "state-00000004").rename(again / "state-00000004")
    resumed = load_file(train(dataclasses.replace(settings, output=str(again))) / "model.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert state.load(again / "state-00000006")[1]["guard"]["skipped"] == 1


def test_every_rank_of_two_is_told_in_the_rows(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    guard = watching(recipe, tmp_path, monkeypatch)
    guard._told = lambda sequence: {}

    class Side:
        def split(self):
            return [None] * 8

    batch = type("Batch", (), {"query": Side(), "passage": Side(), "languages": ("x",)})()
    batch.language = torch.zeros(8, dtype=torch.long)
    rows = list(guard._rows(batch, micro=4))
    assert [row["rank"] for row in rows] == [0, 1] * 4
    assert [row["micro_batch"] for row in rows] == [0] * 4 + [1] * 4
