"""What takes long is not taken for a hang: an evaluation gives signs of life, and unwatched ranks wait for ever."""

from collections import Counter
from pathlib import Path

import pytest

import mcontriever
from mcontriever.training import GuardSettings, loop, train
from mcontriever.training.settings import EvaluationSettings
from mcontriever.training.watchdog import Watchdog

SAMPLE = Path(mcontriever.__file__).parent / "sample"


class LeftOff(Exception):
    pass


def test_an_evaluation_beats_at_every_forward_pass(recipe, shards, tmp_path, monkeypatch):
    heard = Counter()
    monkeypatch.setattr(Watchdog, "beat", lambda self, doing: heard.update([doing]))
    chosen = EvaluationSettings(
        data=str(SAMPLE), pairs=("sw-sw",), queries=3, passages=6, measures=("MRR@3",), batch_tokens=1
    )
    train(recipe(shards, tmp_path, steps=1, evaluation=chosen))
    for step in (0, 1):  # three questions and six passages one by one, the task, its block of scores
        assert heard[f"evaluating after step {step}"] == 3 + 6 + 2


@pytest.mark.parametrize(("hang_seconds", "least"), [(0.0, 86_400 * 300), (50.0, 51), (1e7, 1e7 + 1)])
def test_the_others_are_waited_for_longer_than_the_watchdog_waits(
    recipe, shards, tmp_path, monkeypatch, hang_seconds, least
):
    given = {}

    def start(**options):
        given.update(options)
        raise LeftOff

    monkeypatch.setattr(loop, "start_ranks", start)
    with pytest.raises(LeftOff):
        train(recipe(shards, tmp_path, guard=GuardSettings(hang_seconds=hang_seconds)))
    assert given["timeout_seconds"] >= least
