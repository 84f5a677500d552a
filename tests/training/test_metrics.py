"""The lines of metrics.jsonl: sums and means in closed form, what is skipped, what a kill and a resumption leave."""

import dataclasses
import json
import math

import pytest
import torch

from mcontriever import progress
from mcontriever.errors import DataError
from mcontriever.pairs import Packed, PairBatch
from mcontriever.training import metrics
from mcontriever.training.sinks import Fanout
from mcontriever.training.step import StepResult


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Kept:
    name = "kept"

    def __init__(self):
        self.told = []

    def log(self, step, values):
        self.told.append((step, dict(values)))

    def close(self):
        pass


def result(loss, **changes):
    given = {"accuracy": 0.5, "positive": 2.0, "negative": 1.0, "query_std": 0.1, "key_std": 0.2}
    given |= {"gradient_norm": 3.0, "tokens": 100, "padding": 0.25}
    return StepResult(loss=loss, **(given | changes))


def batch(*languages):
    names = ("ar", "en", "sw")
    packed = Packed(torch.arange(len(languages)), torch.ones(len(languages), dtype=torch.long))
    places = torch.tensor([names.index(language) for language in languages])
    return PairBatch(packed, packed, torch.arange(len(languages)), places, names)


def make(tmp_path, *, every=2, steps=4, done=0, **options):
    clock, kept = Clock(), Kept()
    bar = progress.Bar("Training", steps, "steps", done=done, clock=clock)
    log = metrics.Metrics(
        tmp_path, every=every, steps=steps, done=done, bar=bar, sinks=Fanout([kept]), clock=clock, **options
    )
    return log, clock, kept


def lines(tmp_path, name=metrics.NAME):
    return list(metrics.read(tmp_path / name))


def test_a_line_is_the_means_the_sums_and_the_rates_of_its_steps(tmp_path):
    log, clock, _ = make(tmp_path, steps=10, work=lambda batch: 6e9 * len(batch), peak=1e11)
    for step, (loss, waited) in enumerate([(1.0, 0.1), (3.0, 0.3)], start=1):
        clock.now += 2.0  # of which 0.75 in the step: the rest goes into saving and the like, and into what is to go
        log.add(
            step, result(loss), [batch("ar", "en"), batch("en", "en")], seconds=0.75, waited=waited, learning_rate=0.5
        )
    (line,) = lines(tmp_path)
    memory = line.pop("memory_gib")
    assert 0.01 < memory < 100
    assert line == {
        "step": 2,
        "steps": 2,
        "loss": 2.0,
        "accuracy": 0.5,
        "positive": 2.0,
        "negative": 1.0,
        "query_std": 0.1,
        "key_std": 0.2,
        "gradient_norm": 3.0,
        "padding": 0.25,
        "learning_rate": 0.5,
        "overflows": 0,
        "skipped": 0,
        "languages": {"ar": 2, "en": 6},
        "seconds": 1.5,
        "seconds_waiting": 0.4,
        "seconds_to_go": 16,
        "pairs_per_second": round(8 / 1.5, 1),
        "tokens_per_second": round(200 / 1.5, 1),
        "gemm_share": 0.32,  # 8 pairs of 6e9 operations in 1.5 s, of 1e11 a second
    }


def test_a_line_forgets_the_one_before_and_the_last_step_has_one_anyway(tmp_path):
    log, _, kept = make(tmp_path, every=2, steps=3)
    for step, language in enumerate(["ar", "en", "sw"], start=1):
        log.add(step, result(float(step)), [batch(language)], seconds=1.0, waited=0.0, learning_rate=0.1)
    assert [(line["step"], line["loss"], line["languages"]) for line in lines(tmp_path)] == [
        (2, 1.5, {"ar": 1, "en": 1}),
        (3, 3.0, {"sw": 1}),
    ]
    assert [step for step, _ in kept.told] == [2, 3]
    assert kept.told[0][1]["training/loss"] == 1.5
    assert kept.told[0][1]["languages/ar"] == 0.5
    assert "machine/pairs_per_second" in kept.told[0][1]
    assert not any(name.endswith("/step") for name in kept.told[0][1])


def test_rows_that_fell_back_are_a_share_of_those_since_the_last_line_and_of_all_ranks(tmp_path, monkeypatch, capsys):
    other = iter([3.0, 0.0])  # what another rank, of as many pairs, saw fall back

    def gather(own):
        theirs = own.clone()
        theirs[own == 1] = next(other)  # here one fell back, and nothing else is 1
        return torch.cat([own, theirs])

    log, _, kept = make(tmp_path, every=2, steps=4)
    monkeypatch.setattr(metrics.ranks, "gather", gather)
    told = {"seconds": 0.5, "waited": 0.25, "learning_rate": 0.1}
    for step, fell in enumerate([[True, False], [False, False], [False, False], [False, True]], start=1):
        pairs = dataclasses.replace(batch("en", "en"), fallback=torch.tensor(fell))
        log.add(step, result(1.0), [pairs], **told)
    assert [line["fallback"] for line in lines(tmp_path)] == [4 / 8, 1 / 8]
    assert [values["training/fallback"] for _, values in kept.told] == [4 / 8, 1 / 8]
    assert "fallback 50.0%" in capsys.readouterr().err


def test_steps_that_changed_nothing_are_counted_and_left_out_of_the_means(tmp_path, capsys):
    overflows = 7  # before this start of the run: none of its steps

    log, _, _ = make(tmp_path, every=4, steps=8, skips=lambda: overflows)
    told = {"seconds": 1.0, "waited": 0.0, "learning_rate": 0.1}
    log.add(1, result(1.0), [batch("ar")], **told)
    overflows += 1
    log.add(2, result(9.0, gradient_norm=0.0), [batch("ar")], **told)
    log.add(3, result(math.nan), [batch("ar")], **told, skipped="loss became nan")
    log.add(4, result(3.0), [batch("ar")], **told)
    for step in range(5, 9):
        overflows += step == 8  # counted by the loss scale too, and yet one step
        log.add(step, result(math.nan), [batch("ar")], **told, skipped="gradient's norm became nan")
    first, second = lines(tmp_path)
    assert (first["loss"], first["gradient_norm"], first["languages"]) == (2.0, 3.0, {"ar": 4})
    assert [first[name] for name in ("overflows", "skipped", "fault")] == [1, 1, "loss became nan"]
    assert [second[name] for name in ("loss", "overflows", "skipped")] == [None, 0, 4]
    said = capsys.readouterr().err.splitlines()
    assert "overflows 1 (fp16)  skipped 1 (loss became nan)  loss 2.000" in said[0]
    assert "skipped 4 (gradient's norm became nan)  lr" in said[1], "nothing else is left to say of such steps"
    assert "overflows" not in said[1]
    assert first["tokens_per_second"] == second["tokens_per_second"] == 100.0


def test_a_terminal_without_a_cursor_gets_a_short_line_each(tmp_path, capsys):
    log, clock, _ = make(tmp_path, every=2, steps=4, work=lambda batch: 1e9, peak=1e10)
    for step in range(1, 5):
        clock.now += 0.5
        log.add(step, result(1.0, key_std=math.nan), [batch("ar")], seconds=0.5, waited=0.0, learning_rate=3e-4)
    first, second = capsys.readouterr().err.splitlines()
    memory = first.split("  ")[-1]
    assert first.startswith(
        "Training  2/4 steps  50%  2.0/s  ETA 0:01  loss 1.000  accuracy 0.50  std 0.100/-  norm 3.00"
    )
    assert first.endswith(f"lr 3.0e-04  pairs/s 2  tokens/s 200  GEMM 20%  {memory}")
    assert second.startswith("Training  4/4 steps  100%")
    assert len(first) < 200


def test_the_first_line_after_a_resumption_in_mid_window_says_how_many_steps_it_covers(tmp_path, capsys):
    log, _, _ = make(tmp_path, every=4, steps=9, done=2)
    for step in range(3, 10):
        log.add(step, result(1.0), [batch("ar")], seconds=1.0, waited=0.0, learning_rate=0.1)
    assert [(line["step"], line["steps"]) for line in lines(tmp_path)] == [(4, 2), (8, 4), (9, 1)]
    assert ["over" in line for line in capsys.readouterr().err.splitlines()] == [True, False, True]


def test_measures_have_a_file_of_their_own(tmp_path, capsys):
    log, _, kept = make(tmp_path)
    assert log.evaluated_to == -1
    log.evaluated(0, {"MRR@10 ar-en": 0.123456789, "MRR@10 mean": 0.25}, seconds=1.0)
    assert lines(tmp_path, metrics.EVALUATION) == [
        {"step": 0, "seconds": 1.0, "MRR@10 ar-en": 0.123457, "MRR@10 mean": 0.25}
    ]
    assert kept.told == [(0, {"evaluation/MRR@10 ar-en": 0.123456789, "evaluation/MRR@10 mean": 0.25})]
    assert capsys.readouterr().err == "Evaluation after step 0: MRR@10 ar-en 0.123  MRR@10 mean 0.250\n"
    assert make(tmp_path)[0].evaluated_to == 0
    log.evaluated(
        2, {f"MRR@10 {name}": 0.5 for name in ("a-a", "b-b", "c-c", "d-d", "e-e", "f-f", "mean")}, seconds=1.0
    )
    assert capsys.readouterr().err == "Evaluation after step 2: MRR@10 mean 0.500\n"


def test_cutting_keeps_what_was_logged_up_to_the_state_and_drops_half_a_line(tmp_path):
    for name in (metrics.NAME, metrics.EVALUATION):
        for step in (2, 4, 6):
            metrics.append(tmp_path / name, {"step": step})
        with (tmp_path / name).open("a") as stream:
            stream.write('{"step": 8, "lo')
        assert [line["step"] for line in lines(tmp_path, name)] == [2, 4, 6]
    metrics.cut(tmp_path, 4)
    metrics.append(tmp_path / metrics.NAME, {"step": 5})
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5]
    assert [line["step"] for line in lines(tmp_path, metrics.EVALUATION)] == [2, 4]
    empty = tmp_path / "empty"
    metrics.cut(empty, 0)
    assert [path.name for path in empty.iterdir()] == [metrics.NAME]


@pytest.mark.parametrize("bad", ["{", "[1]", '{"loss": 1}', '{"step": "2"}', "\x00\x00"])
def test_a_broken_line_is_named(tmp_path, bad):
    path = tmp_path / metrics.NAME
    path.write_text(json.dumps({"step": 1}) + "\n" + bad + "\n" + json.dumps({"step": 3}) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a line of a log"):
        list(metrics.read(path))
