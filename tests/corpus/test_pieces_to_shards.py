"""Shards do not depend on how the corpus was cut, who worked, or how often the work was interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparing import WORDS, asked, write

from mcontriever.corpus import Shards, Tokenizer, job, prepare
from mcontriever.errors import ArtifactError, DataError

pytestmark = pytest.mark.usefixtures("quick")

# Run with another size of piece than ours, so that a small corpus has many.
SCRIPT = """
import sys
from mcontriever.corpus import PrepareSettings, job, prepare
from mcontriever.errors import run_command
from mcontriever.settings import parse
job.PIECE_BYTES = 4000
sys.exit(run_command(lambda argv: prepare(parse(PrepareSettings, argv, prog="prepare"))))
"""


def rows(language, count=120):
    chosen = random.Random(language)
    for number in range(count):
        text = " ".join(chosen.choices(WORDS, k=chosen.randint(2, 40)))
        text = text if number % 7 else "the very same text of eight words or more is here again"
        article = {"article": f"a{number // 2 % 30}"} if number % 3 else {}
        title = {"title": f" {WORDS[number % 9].title()} of {language} "} if number % 4 == 0 else {}
        yield {
            "_id": f"{language}{number}",
            "text": text,
            "lang": chosen.choice(["en", "sw", "de"]),
            **article,
            **title,
        }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("en", "sw"):
        write(folder / f"{language}.jsonl", *rows(language))
    (folder / "de.txt").write_text("\n\n".join(row["text"] for row in rows("de", 40)) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([row["text"] for row in rows("en")], 50).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(corpus, tokenizer, tmp_path_factory):
    return contents(prepare(asked(corpus, tokenizer, tmp_path_factory.mktemp("expected") / "shards")))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def naive(corpus, tokenizer, least=8):
    """What the shards must hold, by the shortest way there."""
    loaded, numbers, found = Tokenizer.load(tokenizer), {}, {}
    for language in ("de", "en", "sw"):
        seen, documents, articles, titles = set(), [], [], []
        for row in rows(language, 40 if language == "de" else 120):
            title = row.get("title", "").strip() if language != "de" else ""
            text = f"{title}\n{row['text']}" if title else row["text"]
            ids = loaded.encode([text])[0].tolist()
            if len(ids) >= least and text not in seen:
                seen.add(text)
                documents.append(ids)
                titles.append(len(loaded.encode([title])[0]))
                article = row.get("article") if language != "de" else None
                articles.append(-1 if article is None else numbers.setdefault(article, len(numbers)))
        found[language] = documents, articles, titles
    return found, len(numbers)


def test_shards_are_what_a_naive_reading_gives(corpus, tokenizer, tmp_path):
    shards = Shards.open(prepare(asked(corpus, tokenizer, tmp_path / "shards")))
    found, count = naive(corpus, tokenizer)
    assert shards.languages == list(found)
    assert shards.article_count == count
    for language, (documents, articles, titles) in found.items():
        assert shards.titles(language).tolist() == titles
        assert any(titles) == (language != "de") == (shards.path / f"titles.{language}.npy").exists()
        assert shards.tokens(language).tolist() == [token for row in documents for token in row]
        assert np.diff(shards.offsets(language)).tolist() == [len(row) for row in documents]
        assert shards.articles(language).tolist() == articles
    assert not (tmp_path / "shards.pieces").exists()


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(800, 9000))
def test_any_cut_gives_the_same_bytes(corpus, tokenizer, expected, tmp_path_factory, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "PIECE_BYTES", size)
        out = prepare(asked(corpus, tokenizer, tmp_path_factory.mktemp("cut") / "shards"))
    assert contents(out) == expected


@pytest.mark.parametrize("size", [200, 1500])
def test_any_cut_trains_the_same_tokenizer(corpus, tmp_path, monkeypatch, size):
    few = {"vocab_size": 50, "tokenizer_characters": 3000}
    whole = prepare(asked(corpus, "", tmp_path / "whole", **few))
    monkeypatch.setattr(job, "PIECE_BYTES", size)
    assert contents(prepare(asked(corpus, "", tmp_path / "cut", **few))) == contents(whole)


def test_a_field_states_the_language_of_each_row(corpus, tokenizer, tmp_path, monkeypatch):
    documents = [row for language in ("en", "sw") for row in rows(language)]
    write(tmp_path / "mixed" / "all.jsonl", *documents)
    for language in ("de", "en", "sw"):
        write(tmp_path / "apart" / f"{language}.jsonl", *(row for row in documents if row["lang"] == language))
    apart = Shards.open(prepare(asked(tmp_path / "apart", tokenizer, tmp_path / "expected")))
    monkeypatch.setattr(job, "PIECE_BYTES", 2000)
    mixed = Shards.open(prepare(asked(tmp_path / "mixed", tokenizer, tmp_path / "shards", language_field="lang")))
    assert mixed.languages == apart.languages == ["de", "en", "sw"]
    for language in mixed.languages:
        assert mixed.tokens(language).tolist() == apart.tokens(language).tolist()
    assert mixed.fingerprint == apart.fingerprint


def command(corpus, tokenizer, out, *options):
    given = ["--corpus", str(corpus), "--out", str(out), "--tokenizer", tokenizer, *options]
    return [sys.executable, "-c", SCRIPT, *given]


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_any_number_of_workers_gives_the_same_bytes(corpus, tokenizer, expected, tmp_path, count):
    subprocess.run(command(corpus, tokenizer, tmp_path / "shards", "--workers", count), check=True)
    assert contents(tmp_path / "shards") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def pieces_done(out):
    return {path.parent.name for path in out.parent.glob(f"{out.name}.pieces/piece-*/manifest.json")}


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_killed_again_and_again_it_ends_with_the_same_bytes(corpus, tokenizer, expected, tmp_path, sent):
    out = tmp_path / "shards"
    draws = random.Random(int(sent))
    for _ in range(4):
        before = pieces_done(out)
        process = subprocess.Popen(command(corpus, tokenizer, out, "--workers", "2"), stderr=subprocess.PIPE)
        until, goal = time.monotonic() + 60, len(before) + draws.randint(1, 3)
        while process.poll() is None and len(pieces_done(out)) < goal and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(sent)
        process.communicate()
        if out.exists():
            break
        assert before <= pieces_done(out)
        time.sleep(0.5)  # for its workers to notice
    final = subprocess.run(command(corpus, tokenizer, out, "--workers", "2"), stderr=subprocess.PIPE, check=True)
    assert b"Traceback" not in final.stderr
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def interrupted(corpus, tokenizer, out, monkeypatch, **changes):
    """A run that fails after all pieces; returns its pieces and when each was made."""
    monkeypatch.setattr(job, "PIECE_BYTES", 3000)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[prepare.__module__], "merge_language", lambda task: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(asked(corpus, tokenizer, out, workers=1, **changes))
    folders = sorted(out.parent.glob(f"{out.name}.pieces/piece-*"))
    return {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}


def test_finished_pieces_are_kept_damaged_ones_made_again(corpus, tokenizer, expected, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    first = interrupted(corpus, tokenizer, out, monkeypatch)
    assert len(first) > 5
    damaged = sorted(first)[:3]
    tokens = [next(folder.glob("tokens.*.npy")) for folder in damaged]
    os.truncate(tokens[0], 150)
    content = bytearray(tokens[1].read_bytes())
    content[-1] ^= 1
    tokens[1].write_bytes(content)
    (damaged[2] / "manifest.json").write_text("")
    second = interrupted(corpus, tokenizer, out, monkeypatch)
    assert {folder for folder in first if second[folder] != first[folder]} == set(damaged)
    assert contents(prepare(asked(corpus, tokenizer, out))) == expected
    assert not out.with_name("shards.pieces").exists()


def test_pieces_of_other_settings_or_other_text_are_not_reused(corpus, tokenizer, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    first = set(interrupted(corpus, tokenizer, out, monkeypatch))
    assert set(interrupted(corpus, tokenizer, out, monkeypatch, bad_lines=3, exact_duplicates=False)) == first
    second = set(interrupted(corpus, tokenizer, out, monkeypatch, min_tokens=9))
    assert not first & second  # and the old ones are gone
    other = tmp_path / "corpus"
    for file in corpus.iterdir():
        other.mkdir(exist_ok=True)
        (other / file.name).write_bytes(file.read_bytes().replace(b"castle", b"bridge"))
    assert not set(interrupted(other, tokenizer, out, monkeypatch, min_tokens=9)) & second


def test_one_at_a_time_and_only_in_a_folder_of_its_own(corpus, tokenizer, tmp_path):
    out, work = tmp_path / "shards", tmp_path / "shards.pieces"
    work.mkdir()
    (work / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"shards\.pieces is in the way and not ours"):
        prepare(asked(corpus, tokenizer, out))
    assert (work / "letter.txt").read_text() == "mine"
    other = tmp_path / "other.pieces"
    with job.working_in(other), pytest.raises(ArtifactError, match="another process is preparing the same output"):
        prepare(asked(corpus, tokenizer, tmp_path / "other"))
    assert not other.exists()


def spoilt(corpus, folder):
    """The corpus with bad lines: two in English, one in Swahili."""
    folder.mkdir()
    for file in corpus.iterdir():
        lines = file.read_bytes().splitlines(keepends=True)
        if file.suffix == ".jsonl":
            lines.insert(50, b"{not json\n")
        if file.stem == "en":
            lines.insert(10, b'{"_id": "x", "text": "\xff"}\n')
        (folder / file.name).write_bytes(b"".join(lines))
    return folder


@pytest.mark.parametrize("allowed", [0.02, 3])
def test_bad_lines_within_the_bound_are_left_out_and_told(
    corpus, tokenizer, expected, tmp_path, allowed, monkeypatch, capsys
):
    bad = spoilt(corpus, tmp_path / "bad")
    monkeypatch.setattr(job, "PIECE_BYTES", 1000)
    out = prepare(asked(bad, tokenizer, tmp_path / "shards", bad_lines=allowed))
    same = [name for name in expected if name.endswith(".npy")]
    assert len(same) == 11
    assert all(contents(out)[name] == expected[name] for name in same)
    told = json.loads((out / "report.json").read_text())["bad_lines"]
    assert (told["count"], told["of"]) == (3, 283)
    where = [f"{bad}/en.jsonl:11", f"{bad}/en.jsonl:52", f"{bad}/sw.jsonl:51"]
    assert [line[0] for line in told["first"]] == where
    listed = [json.loads(line) for line in (out / "bad-lines.jsonl").read_text().splitlines()]
    assert [line["where"] for line in listed] == where
    assert "not UTF-8" in listed[0]["problem"]
    errors = capsys.readouterr().err
    assert "3 bad lines of 283 were left out" in errors
    assert f"{where[2]}: not JSON" in errors


def test_too_many_bad_lines_stop_it(corpus, tokenizer, tmp_path):
    bad, out = spoilt(corpus, tmp_path / "bad"), tmp_path / "shards"
    for allowed in (0.0105, 2):
        with pytest.raises(
            DataError, match=rf"3 of 283 lines are bad, --bad_lines allows {allowed}; one of them .*:11:"
        ):
            prepare(asked(bad, tokenizer, out, bad_lines=allowed))
        assert not out.exists()
    with pytest.raises(
        DataError, match=r"en\.jsonl:11: not UTF-8.*; mend it, or allow some such lines with --bad_lines"
    ):
        prepare(asked(bad, tokenizer, tmp_path / "strict"))
    with pytest.raises(DataError, match="lines are bad, --bad_lines allows 0"):  # pieces made under another bound
        prepare(asked(bad, tokenizer, out))
    prepare(asked(bad, tokenizer, out, bad_lines=3))


def test_near_duplicates_go_when_asked(tmp_path, tokenizer):
    pytest.importorskip("rensa")
    texts = [" ".join(random.Random(seed).choices(WORDS, k=60)) for seed in range(5)]
    texts += [texts[2] + " and more", texts[2], texts[4].upper()]
    write(tmp_path / "corpus" / "en.jsonl", *({"text": text} for text in texts))
    found = {}
    for name, near, exact in (("none", 0.0, True), ("near", 0.7, True), ("both", 0.7, False), ("all", 0.0, False)):
        changes = {"near_duplicates": near, "exact_duplicates": exact}
        out = prepare(asked(tmp_path / "corpus", tokenizer, tmp_path / name, **changes))
        report = json.loads((out / "report.json").read_text())["report"]["en"]
        found[name] = [report[key] for key in ("documents", "exact_duplicates", "near_duplicates")]
    assert found == {"none": [7, 1, 0], "near": [5, 1, 2], "both": [5, 0, 3], "all": [8, 0, 0]}
