"""eval/folder.py, the harness itself, on a tiny set in three scripts with a tiny encoder."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import CheckpointError, Encoder, ModelSettings, save
from mcontriever.errors import ArtifactError, DataError, UsageError
from mcontriever.evaluation import Measure, evaluate, mean, read_run
from mcontriever.evaluation.tables import Results

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "folder.py"
TEXTS = {
    "en": ["coffee is a drink", "cats sleep all day", "rivers run to the sea", "the moon is far"],
    "sw": ["kahawa ni kinywaji", "paka hulala mchana kutwa", "mito hutiririka baharini", "mwezi uko mbali"],
    "ar": ["القهوة مشروب", "القطط تنام طوال اليوم", "الأنهار تجري إلى البحر", "القمر بعيد"],
}


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.spec_from_file_location("eval_folder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_folder"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluation")
    data = place / "data"
    (data / "qrels").mkdir(parents=True)
    for code, texts in TEXTS.items():
        passages = [json.dumps({"_id": f"{code}{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
        queries = [json.dumps({"_id": f"q{n}", "text": text.split()[0]}) for n, text in enumerate(texts)]
        qrels = ["query-id\tcorpus-id\tscore", *(f"q{n}\t{code}{n}\t1" for n in range(len(texts)))]
        (data / f"corpus.{code}.jsonl").write_text("\n".join(passages) + "\n")
        (data / f"queries.{code}.jsonl").write_text("\n".join(queries) + "\n")
        (data / f"qrels/test.{code}.tsv").write_text("\n".join(qrels) + "\n")
    tokenizer = Tokenizer.train([text for texts in TEXTS.values() for text in texts] * 3, 60)
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66)
    encoder = Encoder.random(shape, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    save(encoder, place / "model")
    return place


def run(folder, place, out, *more):
    model = place / "model"
    words = ["--data", str(place / "data"), "--out", str(out), "--k", "1,2", *more]
    return folder.main([*words, "--checkpoint", f"mine={model}", "--random", str(model)])


def values(found, measure):
    return {(v["system"], v["task"]): v["value"] for v in found["values"] if v["measure"] == measure}


def test_rows_tasks_and_files(folder, place, tmp_path, capsys):
    found = run(folder, place, tmp_path)
    systems = list(dict.fromkeys(value["system"] for value in found["values"]))
    tasks = list(dict.fromkeys(value["task"] for value in found["values"]))
    assert systems == ["BM25", "random encoder", "mine"]
    assert tasks == ["ar-ar", "en-en", "sw-sw", "ar-en", "sw-en"]
    recall = values(found, "Recall@1")
    # every query is the first word of its passage
    assert [recall["BM25", task] for task in tasks] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert Results.read(tmp_path / "results.json").as_dict() == found
    assert (tmp_path / "table.md").read_text().startswith("| MRR@1 | ar-ar | en-en |")
    shown = capsys.readouterr().out
    assert all(system in shown for system in systems)


def test_every_number_can_be_had_again_from_its_run_file(folder, place, tmp_path):
    found = run(folder, place, tmp_path, "--pairs", "sw-en,ar-ar")
    for measure in (Measure("MRR", 1), Measure("Recall", 2)):
        for (system, task), value in values(found, str(measure)).items():
            ranked = read_run(tmp_path / "runs" / f"{system.replace(' ', '-')}.{task}.trec")
            language = task.partition("-")[2]
            qrels = {f"q{n}": {f"{language}{n}": 1} for n in range(4)}
            assert value == pytest.approx(mean(evaluate(ranked, qrels, [measure])[measure]))


def test_the_random_row_has_other_weights_and_a_seed(folder, place, tmp_path):
    def run_of(name, out, *more):
        run(folder, place, out, "--bm25", "false", "--pairs", "en-en", *more)
        return (out / f"runs/{name}.en-en.trec").read_text()

    first = run_of("random-encoder", tmp_path / "a")
    assert first == run_of("random-encoder", tmp_path / "b")
    assert first != run_of("random-encoder", tmp_path / "c", "--seed", "1")
    mine = (tmp_path / "a/runs/mine.en-en.trec").read_text()
    assert mine == (tmp_path / "c/runs/mine.en-en.trec").read_text()
    assert [line.split()[4] for line in mine.splitlines()] != [line.split()[4] for line in first.splitlines()]


def test_what_is_wrong_is_said_before_any_work(folder, place, tmp_path):
    data, model = str(place / "data"), place / "model"
    damaged, foreign = (shutil.copytree(model, tmp_path / name) for name in ("damaged", "foreign"))
    (damaged / "model.safetensors").write_text("damaged")
    for name in ("manifest.json", "contract.json"):
        (foreign / name).unlink()
    for words, error, said in (
        (["--data", str(tmp_path)], DataError, "expected a test set's folder"),
        (["--data", data, "--bm25", "false"], UsageError, "nothing to evaluate"),
        (["--data", data, "--checkpoint", f"a={model},a={model}"], UsageError, "two rows"),
        (["--data", data, "--pairs", "fi-en"], UsageError, "no queries.fi"),
        (["--data", data, "--k", "0"], UsageError, "must look like"),
        (["--data", data, "--pairs", "en-en,sw-en,en-en"], UsageError, "pair 'en-en' is given twice"),
        (["--data", data, "--k", "2,5"], UsageError, "^Recall@5 cannot be measured: there are 4 passages in ar;"),
        (["--data", data], UsageError, "^MRR@10 cannot be measured: there are 4 passages in ar; .*--k 1"),
        (["--data", data, "--k", "2", "--device", "banana"], UsageError, "device 'banana'.*there are: cpu"),
        (
            ["--data", data, "--checkpoint", f"a={model},b={tmp_path}/nowhere"],
            CheckpointError,
            "nowhere: no such folder",
        ),
        (["--data", data, "--random", str(place / "data")], CheckpointError, r"config\.json: cannot be read"),
        (["--data", data, "--checkpoint", f"a={damaged}"], ArtifactError, r"model\.safetensors: has 7 bytes"),
        (
            ["--data", data, "--checkpoint", f"a={foreign}"],
            CheckpointError,
            f"mcontriever adopt {foreign} OUT --pooling",
        ),
    ):
        with pytest.raises(error, match=said):
            folder.main([*words, "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


def test_a_default_cut_beyond_the_corpus_is_left_out_and_named(folder, place, tmp_path, capsys):
    data = shutil.copytree(place / "data", tmp_path / "data")
    lines = [json.dumps({"_id": f"more{n}", "title": "", "text": "padding"}) + "\n" for n in range(60)]
    with (data / "corpus.en.jsonl").open("a") as file:
        file.writelines(lines)
    words = ["--data", str(data), "--pairs", "en-en,sw-en", "--checkpoint", f"mine={place / 'model'}"]
    found = folder.main([*words, "--out", str(tmp_path / "out")])
    assert {value["measure"] for value in found["values"]} == {"MRR@10", "Recall@10"}
    assert "left out: Recall@100, for there are 64 passages in en; --k gives other cuts\n" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Recall@100 cannot be measured"):
        folder.main([*words, "--k", "10,100", "--out", str(tmp_path / "out")])
    whole = folder.main([*words, "--k", "64", "--out", str(tmp_path / "out")])
    assert values(whole, "Recall@64")["mine", "sw-en"] == 1.0


@pytest.mark.slow
def test_runs_as_a_script_from_anywhere(place, tmp_path):
    words = [sys.executable, str(SCRIPT), "--data", str(place / "data"), "--out", "found", "--k", "1,2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "MRR@1" in done.stdout
    assert (tmp_path / "found/results.json").is_file()
    done = subprocess.run([*words, "--splitt", "x"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
