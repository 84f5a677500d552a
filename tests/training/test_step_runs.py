"""Token budgets, the gradient cache, key dropout and the warm start in whole runs: what a recipe's user gets."""

import math

import pytest
import torch
from safetensors.torch import load_file

from mcontriever.encoder import ModelSettings
from mcontriever.objectives import ObjectiveSettings
from mcontriever.training import BatchSettings, metrics, train
from mcontriever.training.step import Moco

STILL = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66, dropout=0.0)
IN_BATCH = {"kind": "in_batch", "temperature": 1.0}
MOCO = {"queue_size": 19, "momentum": 0.9, "temperature": 1.0}


def curve(output):
    return [
        {name: value for name, value in line.items() if name in ("loss", "accuracy", "tokens", "key_std", "padding")}
        for line in metrics.read(output / metrics.NAME)
        if "loss" in line
    ]


@pytest.mark.parametrize("objective", [MOCO | {"warm_start": True}, IN_BATCH | {"gradient_cache": True}], ids=str)
def test_a_token_budget_changes_the_memory_and_nothing_else(shards, recipe, tmp_path, objective):
    given = {"model": STILL, "log_every": 1, "objective": ObjectiveSettings(**objective)}
    whole, cut = (
        train(recipe(shards, tmp_path / str(tokens), batch=BatchSettings(size=8, tokens=tokens), **given))
        for tokens in (0, 140)
    )
    one, other = curve(tmp_path / "0"), curve(tmp_path / "140")
    assert len(one) == 6
    for want, have in zip(one, other, strict=True):
        assert have == pytest.approx(want, abs=1e-4)
        assert want["loss"] > 0.1
        assert 0 < want["padding"] < 1
        assert want["key_std"] > 0.01
    expected, got = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-4)


def test_a_cold_queue_has_nothing_to_say_at_first_and_a_warm_one_has(shards, recipe, tmp_path):
    for name, warm in (("cold", False), ("warm", True)):
        objective = ObjectiveSettings(**MOCO, warm_start=warm)
        train(recipe(shards, tmp_path / name, model=STILL, log_every=1, steps=2, objective=objective))
    assert curve(tmp_path / "cold")[0]["loss"] == 0.0
    assert curve(tmp_path / "warm")[0]["loss"] == pytest.approx(math.log(1 + MOCO["queue_size"]), rel=0.3)


def test_the_queue_is_warmed_once_and_a_resumed_run_with_key_dropout_is_bit_identical(
    shards, recipe, tmp_path, monkeypatch, killed_at
):
    warmed, real = [], Moco.warm_start
    monkeypatch.setattr(Moco, "warm_start", lambda self, steps: warmed.append(1) or real(self, steps))
    objective = ObjectiveSettings(**MOCO, warm_start=True, key_dropout=True, label_smoothing=0.1)
    given = {"objective": objective, "log_every": 1, "batch": BatchSettings(size=8, tokens=140)}
    whole = train(recipe(shards, tmp_path / "whole", **given))
    with killed_at(4):
        train(recipe(shards, tmp_path / "killed", **given))
    assert len(warmed) == 2
    resumed = train(recipe(shards, tmp_path / "killed", **given))
    assert len(warmed) == 2, "a resumed run finds its queue in the train state"
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")
    expected, got = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_margin_loss_learns(shards, recipe, tmp_path):
    objective = ObjectiveSettings(kind="in_batch", loss="margin", margin=1.0)
    train(recipe(shards, tmp_path / "run", model=STILL, log_every=1, steps=25, objective=objective))
    losses = [line["loss"] for line in curve(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
