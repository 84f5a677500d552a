"""A whole run in this process with the plain engine: ends, repeats, resumes, refuses."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mcontriever import encoder
from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.encoder import ModelSettings
from mcontriever.errors import ArtifactError, McontrieverError, SettingsError
from mcontriever.objectives import ObjectiveSettings
from mcontriever.pairs import LabelledSettings, UnlabelledSettings
from mcontriever.training import BatchSettings, SavingSettings, TrainSettings, metrics, opening, train
from mcontriever.training import loop as loop_module
from mcontriever.training.schedule import OptimSettings

TINY = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "dropout": 0.1}


def test_a_run_leaves_a_checkpoint_that_knows_its_recipe(recipe, shards, tmp_path):
    model = train(recipe(shards, tmp_path / "run"))
    assert (model / "recipe.toml").read_text().startswith("output")
    assert encoder.load(model, device="cpu").encode_queries(["river"]).shape == (1, 16)
    lines = list(metrics.read(tmp_path / "run" / metrics.NAME))
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "run").glob("state-*")) == ["state-00000004", "state-00000006"]


def test_killed_and_resumed_is_bit_identical_dropout_and_queue_included(recipe, shards, tmp_path, killed_at):
    whole = train(recipe(shards, tmp_path / "whole"))
    with killed_at(5):
        train(recipe(shards, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "model").exists()
    resumed = train(recipe(shards, tmp_path / "killed"))
    expected, got = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    curves = [
        [{k: v for k, v in line.items() if k not in metrics.MACHINE} for line in metrics.read(run / metrics.NAME)]
        for run in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert curves[0] == curves[1]


def test_what_is_left_out_and_what_falls_back_is_told(recipe, tmp_path, capsys):
    text = " ".join(f"word{number}" for number in range(30))
    rows = [json.dumps({"_id": str(number), "text": f"{number} {text}"}) for number in range(12)]
    (tmp_path / "en.jsonl").write_text("\n".join([*rows, '{"_id": "x", "text": "ab"}']) + "\n")
    out = tmp_path / "shards"
    prepare(PrepareSettings(corpus=str(tmp_path / "en.jsonl"), out=str(out), vocab_size=22, min_tokens=1))
    view = UnlabelledSettings(shards=str(out), window=32, view="ict")
    train(recipe(out, tmp_path / "run", unlabelled=view, steps=2))
    assert "too short for view ict (under 8 tokens): 1 of en; nothing is learnt from them" in capsys.readouterr().err
    (line,) = metrics.read(tmp_path / "run" / metrics.NAME)
    assert line["fallback"] == 1.0  # there is no end of a sentence in any of them


def test_what_is_given_and_not_used_is_told_once(recipe, shards, tmp_path, capsys):
    recipe_of = functools.partial(recipe, shards, steps=1, objective=ObjectiveSettings(kind="in_batch", queue_size=99))
    view = UnlabelledSettings(shards=str(shards), window=64, weights={"en": 1.0, "sw": 0.0})
    start = train(recipe_of(tmp_path / "pre", unlabelled=view))
    said = capsys.readouterr().err
    assert said.count("objective.queue_size ignored, only for objective.kind = 'moco'") == 1
    assert said.count("left out by unlabelled.weights 0: sw; nothing is learnt from them") == 1
    (line,) = metrics.read(tmp_path / "pre" / metrics.NAME)
    assert line["languages"] == {"en": 8}
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": f"river {number}", "positive": {"text": f"lake {number} " * 20}} for number in range(8)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    labelled = LabelledSettings(file=str(pairs), passage_max_length=16)
    train(recipe_of(tmp_path / "fine", unlabelled=UnlabelledSettings(), labelled=labelled, init=str(start)))
    said = capsys.readouterr().err
    assert said.count("labelled.passage_max_length 16 cuts off the end of 8 of 8 passages") == 1


def test_a_frozen_checkpoint_chooses_salient_spans(recipe, shards, tmp_path, monkeypatch):
    judges = [train(recipe(shards, tmp_path / f"judge{seed}", seed=seed, steps=1)) for seed in (1, 2)]
    settings = {"shards": str(shards), "window": 32, "view": "salient"}
    by_counts = recipe(shards, tmp_path / "counts", unlabelled=UnlabelledSettings(**settings), steps=2)
    asked = dataclasses.replace(
        by_counts, output=str(tmp_path / "run"), unlabelled=UnlabelledSettings(**settings, salience=str(judges[0]))
    )
    queries = []
    for settings_of_run in (by_counts, asked):
        opened = opening.open_shards(settings_of_run)
        made = opening.open_pairs(settings_of_run, opening.initial_encoder(settings_of_run, opened), opened)
        queries.append(made.batch(0, np.arange(8), 8).query)
    assert not torch.equal(queries[0].ids, queries[1].ids)
    train(asked)
    moved = tmp_path / "moved"
    shutil.move(judges[0], moved)
    same = dataclasses.replace(asked, unlabelled=dataclasses.replace(asked.unlabelled, salience=str(moved)))
    assert train(same) == tmp_path / "run" / "model"
    other = dataclasses.replace(asked, unlabelled=dataclasses.replace(asked.unlabelled, salience=str(judges[1])))
    with pytest.raises(SettingsError, match=r"was trained other content of unlabelled.salience = \w+…, it is \w+… now"):
        train(other)
    wide = UnlabelledSettings(**settings | {"window": 64}, salience=str(moved), crop_max=0.5)
    bigger = recipe(shards, tmp_path / "wide", unlabelled=wide, model=ModelSettings(max_positions=130, **TINY))
    with pytest.raises(
        SettingsError, match=r"unlabelled.window with bos and eos is 66 tokens, unlabelled.salience \S+"
    ):
        train(bigger)


@pytest.mark.parametrize("harmed", ["weights.safetensors", "manifest.json"])
def test_a_damaged_state_is_named_and_the_one_before_it_taken(recipe, shards, tmp_path, capsys, harmed):
    run = tmp_path / "run"
    expected = load_file(train(recipe(shards, run)) / "model.safetensors")
    for path in (run / "model").iterdir():
        path.unlink()
    (run / "model").rmdir()
    broken = run / "state-00000006" / harmed
    content = bytearray(broken.read_bytes())
    content[-5] ^= 1
    broken.write_bytes(content)
    again = load_file(train(recipe(shards, run)) / "model.safetensors")
    said = capsys.readouterr().err
    assert "not resuming from state-00000006" in said
    assert "resuming after step 4" in said
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_a_second_run_over_the_first_does_nothing_and_another_recipe_is_refused(recipe, shards, tmp_path, capsys):
    first = recipe(shards, tmp_path / "run")
    model = train(first)
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert train(first) == model
    assert "has ended already" in capsys.readouterr().err
    assert (model / "model.safetensors").stat().st_mtime_ns == before
    other = dataclasses.replace(first, optim=OptimSettings(lr=2e-3, warmup=2))
    with pytest.raises(SettingsError, match=r"was trained with optim.lr = 0.001, it is 0.002 now"):
        train(other)
    longer = dataclasses.replace(first, steps=12)
    with pytest.raises(SettingsError, match=rf"a run of 6 steps, 12 are asked for.*another --output: --init {model}$"):
        train(longer)
    shutil.rmtree(model)
    with pytest.raises(SettingsError, match=r"mcontriever export .*/state-00000006 OUT and --init OUT$"):
        train(longer)


def test_fine_tuning_starts_from_a_checkpoint_and_learns(recipe, shards, words, tmp_path):
    start = train(recipe(shards, tmp_path / "pre"))
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"query": f"where is {word}", "positive": {"title": "", "text": f"{word}{i} is {word}"}}
        for i, word in enumerate(words)
    ]
    pairs.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    tuned = TrainSettings(
        output=str(tmp_path / "fine"),
        init=str(start),
        steps=30,
        log_every=10,
        labelled=LabelledSettings(file=str(pairs), query_max_length=32, passage_max_length=64),
        objective=ObjectiveSettings(kind="in_batch"),
        optim=OptimSettings(lr=1e-2, warmup=2),
        batch=BatchSettings(size=14),
    )
    train(tuned)
    losses = [line["loss"] for line in metrics.read(tmp_path / "fine" / metrics.NAME)]
    assert losses[-1] < losses[0] / 2


def test_settings_that_cannot_work_are_refused_before_any_work(recipe, shards, tmp_path):
    with pytest.raises(SettingsError, match="queue_size 4 is smaller than batch.size 8"):
        train(recipe(shards, tmp_path / "a", objective=ObjectiveSettings(queue_size=4)))
    with pytest.raises(SettingsError, match="neither is set"):
        recipe("", tmp_path)
    with pytest.raises(SettingsError, match="begins from a checkpoint"):
        TrainSettings(output="o", labelled=LabelledSettings(file="f"))
    with pytest.raises(ArtifactError, match="no such folder"):
        train(recipe(tmp_path / "nowhere", tmp_path / "b"))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("field", "what"), [("loss", "loss"), ("gradient_norm", "gradient's norm")])
def test_what_is_no_number_stops_the_run_and_leaves_the_last_state(recipe, shards, tmp_path, monkeypatch, field, what):
    real = loop_module.train_step

    def poisoned(*arguments):
        result = real(*arguments)
        poisoned.calls += 1
        return dataclasses.replace(result, **{field: float("nan")}) if poisoned.calls == 4 else result

    poisoned.calls = 0
    monkeypatch.setattr(loop_module, "train_step", poisoned)
    with pytest.raises(McontrieverError, match=f"the {what} became nan at step 4"):
        train(recipe(shards, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").glob("state-*")] == ["state-00000002"]


def test_the_same_shards_elsewhere_go_on_and_others_in_their_place_are_refused(recipe, shards, words, tmp_path):
    place = tmp_path / "shards"
    shutil.copytree(shards, place)
    run = tmp_path / "run"
    model = train(recipe(shards, run))
    assert train(recipe(place, run)) == model
    corpus = tmp_path / "corpus.en.jsonl"
    rows = [json.dumps({"_id": str(i), "text": " ".join(words[i % 5 :] * 2), "article": str(i)}) for i in range(24)]
    corpus.write_text("\n".join(rows) + "\n")
    shutil.rmtree(place)
    prepare(PrepareSettings(corpus=str(corpus), out=str(place), tokenizer=str(shards / "tokenizer"), min_tokens=1))
    with pytest.raises(SettingsError, match="other content of unlabelled.shards"):
        train(recipe(place, run, unlabelled=UnlabelledSettings(shards=str(place), window=64, comparable=0.5)))


def test_what_the_model_or_the_data_has_no_room_for_is_refused(recipe, shards, tmp_path):
    wide = UnlabelledSettings(shards=str(shards), window=128, crop_max=1.0)
    with pytest.raises(SettingsError, match=r"is 130 tokens, the model has positions for 64"):
        train(recipe(shards, tmp_path / "a", unlabelled=wide))
    big = {"batch": BatchSettings(size=64), "objective": ObjectiveSettings(queue_size=64)}
    with pytest.raises(SettingsError, match=r"holds 48 windows of text, fewer than batch.size 64"):
        train(recipe(shards, tmp_path / "b", **big))


def test_states_left_by_a_kill_after_the_checkpoint_go_with_the_next_start(recipe, shards, tmp_path):
    saving = SavingSettings(every=2, keep=2, keep_last=False)
    run = tmp_path / "run"
    train(recipe(shards, run))
    assert list(run.glob("state-*"))
    train(recipe(shards, run, saving=saving))
    assert not list(run.glob("state-*"))
