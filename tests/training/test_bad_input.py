"""What cannot work is said before the first step, names what to do, and harms nothing that is there."""

import collections
import dataclasses
import json
import os
import shutil

import pytest

from mcontriever import artifact, encoder
from mcontriever.corpus import PrepareSettings, prepare
from mcontriever.errors import ArtifactError, McontrieverError, SettingsError
from mcontriever.pairs import UnlabelledSettings
from mcontriever.training import SavingSettings, loop, state, train
from mcontriever.training.schedule import OptimSettings

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def never_a_step(monkeypatch):
    real = loop.train_step

    def counted(*arguments):
        counted.steps += 1
        return real(*arguments)

    counted.steps = 0
    monkeypatch.setattr(loop, "train_step", counted)
    return counted


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(("harm", "said"), [("cut", "bytes, its manifest says"), ("flip", "differs from its checksum")])
def test_shards_that_are_damaged(recipe, shards, tmp_path, never_a_step, harm, said):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    victim = largest(copy)
    if harm == "cut":
        os.truncate(victim, victim.stat().st_size - 1)
    else:
        content = victim.read_bytes()
        victim.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(ArtifactError, match=said):
        train(recipe(copy, tmp_path / "run"))
    assert never_a_step.steps == 0
    assert not (tmp_path / "run").exists()


def test_shards_of_another_tokenizer(recipe, shards, tmp_path, never_a_step):
    start = train(recipe(shards, tmp_path / "start", steps=1))
    rows = [json.dumps({"text": f"other words {number}"}) for number in range(50)]
    (tmp_path / "corpus.en.jsonl").write_text("\n".join(rows) + "\n")
    other = tmp_path / "other"
    prepare(PrepareSettings(corpus=str(tmp_path / "corpus.en.jsonl"), out=str(other), vocab_size=24, min_tokens=1))
    settings = recipe(other, tmp_path / "run", init=str(start))
    with pytest.raises(ArtifactError, match=r"tokenised with another tokenizer .*prepare the shards again"):
        train(settings)
    chosen = UnlabelledSettings(shards=str(other), window=32, view="salient", salience=str(start))
    with pytest.raises(ArtifactError, match=rf"tokenised with another tokenizer .*than {start} has"):
        train(recipe(other, tmp_path / "run", unlabelled=chosen))
    assert never_a_step.steps == 1


def test_a_model_without_room_for_the_vocabulary(recipe, shards, tmp_path, never_a_step):
    start = train(recipe(shards, tmp_path / "start", steps=1))
    small = tmp_path / "small"
    with artifact.writing(small, encoder.KIND) as draft:
        shutil.copytree(start, draft.folder, dirs_exist_ok=True, ignore=lambda *_: [artifact.MANIFEST])
        config = json.loads((draft.folder / "config.json").read_text())
        (draft.folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 7}))
        draft.meta |= artifact.open_artifact(start, encoder.KIND).meta
    with pytest.raises(McontrieverError, match="the tokenizer knows 64 ids, the model 57"):
        train(recipe(shards, tmp_path / "run", init=str(small)))
    assert never_a_step.steps == 1


def test_a_train_state_of_another_recipe(recipe, shards, tmp_path, never_a_step):
    first = recipe(shards, tmp_path / "run")
    model = train(first)
    shutil.rmtree(model)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(SettingsError, match=r"state-00000006: was trained with optim.lr = 0.001, it is 0.002 now"):
        train(dataclasses.replace(first, optim=OptimSettings(lr=2e-3, warmup=2)))
    assert never_a_step.steps == 6
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    assert state.newest(tmp_path / "run") == (tmp_path / "run" / "state-00000006", [])


def test_train_states_none_of_which_is_whole(recipe, shards, tmp_path, never_a_step):
    settings = recipe(shards, tmp_path / "run")
    shutil.rmtree(train(settings))
    for _, path in state.states(tmp_path / "run"):
        (path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"no train state is whole .* or remove them to begin anew"):
        train(settings)
    assert never_a_step.steps == 6


def test_a_disk_without_room_for_the_states(recipe, shards, tmp_path, monkeypatch, never_a_step):
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: Usage(0, 0, 150_000))
    with pytest.raises(
        ArtifactError, match=r"training \(3 more train states, saving.keep = 2, and the checkpoint\) needs"
    ):
        train(recipe(shards, tmp_path / "run"))
    assert never_a_step.steps == 0


def test_a_best_state_by_what_is_not_measured(recipe, shards, tmp_path, never_a_step):
    for best in ("MRR@10 ar-en", "lost"):
        with pytest.raises(SettingsError, match=rf"saving.best is '{best}', which is not measured in this run"):
            train(recipe(shards, tmp_path / "run", saving=SavingSettings(best=best)))
    assert never_a_step.steps == 0


def test_a_language_without_text(recipe, shards, tmp_path, never_a_step):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [json.dumps({"text": f"words and words, {number} of them"}) for number in range(40)]
    (folder / "en.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "sw.jsonl").write_text("")
    with pytest.raises(McontrieverError, match="sw"):
        prepare(PrepareSettings(corpus=str(folder), out=str(tmp_path / "shards"), tokenizer=str(shards / "tokenizer")))
    chosen = UnlabelledSettings(shards=str(shards), window=64, weights={"en": 1.0, "xx": 1.0})
    with pytest.raises(McontrieverError, match="xx"):
        train(recipe(shards, tmp_path / "run", unlabelled=chosen))
    assert never_a_step.steps == 0
