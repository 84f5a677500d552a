"""The encoder of a run as a checkpoint: from any state, also while the run goes on."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mcontriever import artifact, encoder
from mcontriever.errors import ArtifactError, DataError, SettingsError, UsageError
from mcontriever.evaluation import Results, Value
from mcontriever.objectives import ObjectiveSettings
from mcontriever.training import SavingSettings, export, loop, state, train
from mcontriever.training.export import ExportSettings


@pytest.fixture(scope="module")
def run(recipe, shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "run"
    train(recipe(shards, output, saving=SavingSettings(every=2, keep=2, best="loss")))
    return output


def exported(run, out, **how):
    return encoder.load(export.export(ExportSettings(run=str(run), out=str(out), **how)), device="cpu")


def vector(of):
    return of.encode_queries(["river lake"])


def test_the_last_state_is_the_checkpoint_of_the_run(run, tmp_path):
    want = encoder.load(run / "model", device="cpu")
    got = exported(run, tmp_path / "out")
    assert np.array_equal(vector(got), vector(want))
    assert got.contract == want.contract
    assert (tmp_path / "out" / "recipe.toml").read_text() == (run / "model" / "recipe.toml").read_text()


@pytest.mark.parametrize("how", ["run", "state"])
def test_another_step_by_its_number_or_its_folder(run, tmp_path, how):
    if how == "run":
        exported(run, tmp_path / "out", step="4")
    else:
        exported(state.path_of(run, 4), tmp_path / "out")
    got, (want, _) = load_file(tmp_path / "out" / "model.safetensors"), state.load(state.path_of(run, 4))
    assert len(got) == len(want["weights"])
    assert all(torch.equal(got[name.removeprefix("model.")], value) for name, value in want["weights"].items())


def test_the_momentum_encoder(run, tmp_path):
    exported(run, tmp_path / "out", which="key")
    got, (want, _) = load_file(tmp_path / "out" / "model.safetensors"), state.load(state.path_of(run, 6))
    assert all(torch.equal(got[name.removeprefix("model.")], value) for name, value in want["key_encoder"].items())
    assert any(not torch.equal(want["weights"][name], value) for name, value in want["key_encoder"].items())


def test_the_best(run, tmp_path, capsys):
    exported(run, tmp_path / "out", step="best")
    assert f"of {state.best_of(run, 'loss')}" in capsys.readouterr().out


def test_a_damaged_newest_is_passed_over(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "state-00000006" / "weights.safetensors").write_bytes(b"")
    exported(copy, tmp_path / "out")
    assert "state-00000004" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="has 0 bytes, its manifest says"):
        exported(copy, tmp_path / "other", step="6")
    assert not (tmp_path / "other").exists()


def test_a_state_that_the_run_lets_go_of_meanwhile_gives_way_to_the_newer_one(run, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newer, aside = copy / "state-00000006", tmp_path / "aside"
    newer.rename(aside)
    real = export._export_state

    def too_late(found, *arguments):
        if aside.exists():  # the run saves once more, and lets go of what was just chosen
            aside.rename(newer)
            shutil.rmtree(found)
        return real(found, *arguments)

    monkeypatch.setattr(export, "_export_state", too_late)
    exported(copy, tmp_path / "out")
    assert "state-00000006" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"step": "5"}, UsageError, r"no train state of step 5; there are 6, 4"),
        ({"step": "newest"}, SettingsError, r"step must be one of last, best"),
        ({"which": "both"}, SettingsError, r"which must be one of query, key"),
    ],
)
def test_what_is_not_there_is_said(run, tmp_path, how, error, said):
    with pytest.raises(error, match=said):
        exported(run, tmp_path / "out", **how)


def test_a_run_that_goes_on_can_be_exported_and_does_not_notice(recipe, shards, run, tmp_path, monkeypatch):
    real, output = loop.train_step, tmp_path / "run"

    def exporting(*arguments):
        if state.path_of(output, 4).exists() and not (tmp_path / "out").exists():
            exported(output, tmp_path / "out")
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", exporting)
    model = train(recipe(shards, output))
    assert artifact.is_artifact(tmp_path / "out", encoder.KIND)
    want, got = load_file(run / "model" / "model.safetensors"), load_file(model / "model.safetensors")
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_without_a_queue_there_is_no_key_encoder_and_without_a_measure_no_best(recipe, shards, tmp_path):
    output = tmp_path / "run"
    train(recipe(shards, output, steps=1, objective=ObjectiveSettings(kind="in_batch")))
    with pytest.raises(UsageError, match="has no momentum encoder"):
        exported(output, tmp_path / "out", which="key")
    with pytest.raises(UsageError, match=r"no state tells how good it is \(saving.best\)"):
        exported(output, tmp_path / "out", step="best")
    with pytest.raises(ArtifactError, match="neither a train state nor a run that holds one"):
        exported(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("every", "first"), [(3, 3), (1000, 6)])
def test_a_run_without_a_state_yet_says_when_one_comes(recipe, shards, tmp_path, monkeypatch, every, first):
    output, real = tmp_path / "run", loop.train_step
    monkeypatch.setattr(
        loop, "train_step", lambda *arguments: (_ask(output, tmp_path / "out", first), real(*arguments))[1]
    )
    train(recipe(shards, output, steps=6, saving=SavingSettings(every=every)))
    assert state.states(output)


def _ask(output, out, first):
    if not state.states(output):
        with pytest.raises(
            ArtifactError, match=rf"no state saved yet; the first comes at step {first} \(saving.every\)"
        ):
            exported(output, out)


def test_a_state_of_a_better_evaluation_is_saved_out_of_turn_and_kept(recipe, shards, tmp_path, monkeypatch):
    values = {1: 0.1, 3: 0.9, 4: 0.2, 5: 0.5}

    def maybe(self, step, engine, log, *, last=False, beat=None):
        return {"MRR@10 en": values[step]} if step in values else None

    monkeypatch.setattr(loop.Evaluator, "maybe", maybe)
    monkeypatch.setattr(loop.Evaluator, "names", ["MRR@10 en"])
    settings = recipe(shards, tmp_path / "run", saving=SavingSettings(every=2, keep=1, best="MRR@10 en"))
    train(settings)
    assert sorted(step for step, _ in state.states(tmp_path / "run")) == [3, 6]
    assert state.best_of(tmp_path / "run", "MRR@10 en") == state.path_of(tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(state.path_of(tmp_path / "run", 6))
    train(dataclasses.replace(settings, saving=SavingSettings(every=5, keep=1, best="MRR@10 en")))
    assert sorted(step for step, _ in state.states(tmp_path / "run")) == [3, 6], "what was best before is remembered"


def test_a_run_to_other_software_goes_through_its_checkpoint(run, tmp_path, capsys):
    exported(run, tmp_path / "plain", which="key")
    want = encoder.load(tmp_path / "plain", device="cpu")
    got = exported(run, tmp_path / "out", which="key", format="huggingface")
    assert np.array_equal(vector(got), vector(want))
    assert got.contract == want.contract
    found = artifact.open_artifact(tmp_path / "out", encoder.KIND)
    assert (found.meta["exported_from"], found.meta["encoder"]) == ("state-00000006", "key")
    assert (tmp_path / "out" / "recipe.toml").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "out"}, "nothing is left of the way there"
    assert "the key encoder of" in capsys.readouterr().out


def test_a_checkpoint_is_exported_and_so_is_a_run_that_has_nothing_else_left(recipe, shards, tmp_path):
    output = tmp_path / "run"
    train(recipe(shards, output, steps=1, saving=SavingSettings(keep_last=False)))
    assert not state.states(output)
    want = vector(encoder.load(output / "model", device="cpu"))
    for number, source in enumerate((output, output / "model")):
        out = tmp_path / str(number)
        assert np.array_equal(vector(exported(source, out, format="checkpoint")), want)
        assert (out / "README.md").is_file()
        assert (out / "recipe.toml").read_text() == (output / "model" / "recipe.toml").read_text()
    with pytest.raises(UsageError, match="leave out --step and --which"):
        exported(output / "model", tmp_path / "other", which="key")
    with pytest.raises(UsageError, match="lies in the input"):
        exported(output / "model", output / "model" / "inner")


def test_the_card_has_the_figures_of_the_results_and_no_others(run, tmp_path):
    pytest.importorskip("pandas")
    results = Results({"data": "/somewhere/on/a/disk/sample", "split": "test"})
    for system, value in (("BM25", 0.25), ("mine", 0.75)):
        results.add(Value(system, "sw-en", "MRR@10", value, 1200, 150))
    results.save(tmp_path / "results.json")
    given = {"results": str(tmp_path / "results.json"), "language": ("sw", "en"), "license": "mit", "name": "me/it"}
    exported(run, tmp_path / "out", system="mine", **given)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "This model is the row `mine`." in card
    assert "(data sample, split test): 1,200 queries and 150 passages a task" in card
    assert "| mine | 0.750 |" in card
    assert "| BM25 | 0.250 |" in card
    assert "/somewhere" not in card
    assert str(run) not in card
    assert 'mcontriever.load("me/it")' in card
    with pytest.raises(UsageError, match=r"--system min: no such row in .*; did you mean 'mine'\?"):
        exported(run, tmp_path / "other", system="min", **given)
    with pytest.raises(DataError, match="no such file"):
        exported(run, tmp_path / "other", system="mine", results=str(tmp_path / "nowhere.json"))
    exported(run, tmp_path / "without")
    assert "Results" not in (tmp_path / "without" / "README.md").read_text()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"format": "onxx"}, r"format must be one of .* did you mean 'onnx'"),
        ({"accept_loss": True}, r"accept_loss is only for format = 'onnx-int8', got format = 'checkpoint'"),
        ({"results": "results.json"}, r"results and system go together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(how, said):
    with pytest.raises(SettingsError, match=said):
        ExportSettings(run="a", out="b", **how)
