"""When preparation stops, what it makes again, and what it tells of what it could not do."""

import json
import random
import sys

import pytest
from preparing import WORDS, asked, write

from mcontriever.corpus import Tokenizer, duplicates, job, prepare, readers, streams
from mcontriever.corpus.cleaning import CleanSettings
from mcontriever.errors import DataError

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, chosen = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for language in ("en", "sw"):
        texts = [" ".join(chosen.choices(WORDS, k=chosen.randint(9, 40))) for _ in range(120)]
        write(folder / f"{language}.jsonl", *({"_id": str(place), "text": text} for place, text in enumerate(texts)))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(WORDS * 9, 36).save(folder)
    return str(folder)


def test_what_was_never_compared_is_told(tmp_path, tokenizer, monkeypatch, capsys):
    pytest.importorskip("rensa")
    texts = [" ".join(random.Random(seed).choices(WORDS, k=60)) for seed in range(20)]
    write(tmp_path / "corpus" / "en.jsonl", *({"text": text} for text in texts))
    monkeypatch.setattr(duplicates, "_bands", lambda permutations, threshold: [slice(0, 0)])  # all meet
    for rounds, left in ((256, 0), (5, 14)):
        monkeypatch.setattr(duplicates, "_ROUNDS", rounds)
        out = prepare(asked(tmp_path / "corpus", tokenizer, tmp_path / f"{rounds}", near_duplicates=0.9))
        report = json.loads((out / "report.json").read_text())["report"]["en"]
        assert (report["documents"], report["near_uncompared"]) == (20, left)
        line = f"en: {left} documents share a stretch with so many others that they were not compared with all of them"
        assert (line in capsys.readouterr().err) == bool(left)


def trained(corpus, out, monkeypatch, **changes):
    """How often a tokenizer is trained by a run that is stopped before its pieces are joined."""
    with monkeypatch.context() as patch:
        calls, train = [], Tokenizer.train
        patch.setattr(Tokenizer, "train", lambda *given: calls.append(1) or train(*given))
        patch.setattr(sys.modules[prepare.__module__], "merge_language", lambda task: 1 / 0)
        with pytest.raises((ZeroDivisionError, DataError), match="division by zero|lines are bad"):
            prepare(asked(corpus, "", out, **{"vocab_size": 36, "tokenizer_characters": 3000} | changes))
    return len(calls)


def test_only_what_its_text_depends_on_trains_the_tokenizer_again(corpus, tmp_path, monkeypatch):
    out, changes = tmp_path / "shards", {}
    assert trained(corpus, out, monkeypatch) == 1
    for untouched in ({"near_duplicates": 0.8}, {"min_tokens": 9}, {"exact_duplicates": False}, {"bad_lines": 3}):
        changes |= untouched
        assert trained(corpus, out, monkeypatch, **changes) == 0
    for touched in ({"clean": CleanSettings(normalise="nfkc")}, {"vocab_size": 35}, {"tokenizer_characters": 2000}):
        changes |= touched
        assert trained(corpus, out, monkeypatch, **changes) == 1
    other = tmp_path / "corpus"
    other.mkdir()
    for file in corpus.iterdir():
        (other / file.name).write_bytes(file.read_bytes().replace(b"castle", b"bridge"))
    assert trained(other, out, monkeypatch, **changes) == 1


@pytest.mark.parametrize("allowed", [0.0105, 2])
def test_too_many_bad_lines_stop_it_before_a_tokenizer_is_trained(corpus, tmp_path, monkeypatch, allowed):
    monkeypatch.setattr(job, "PIECE_BYTES", 1000)
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in corpus.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (bad / file.name).write_text(
            "".join([*lines[:50], "{not json\n", *lines[50:60], *["[]\n"] * (file.stem == "sw"), *lines[60:]])
        )
    assert trained(bad, tmp_path / "shards", monkeypatch, bad_lines=allowed) == 0
    assert trained(bad, tmp_path / "shards", monkeypatch, bad_lines=3) == 1


@pytest.mark.parametrize("given", ["", "a tokenizer"])
@pytest.mark.parametrize("field", ["field", "language_field"])
def test_a_key_that_no_row_has_stops_at_the_first_piece(corpus, tokenizer, tmp_path, monkeypatch, given, field):
    monkeypatch.setattr(job, "PIECE_BYTES", 1000)
    (tmp_path / "en.jsonl").write_bytes((corpus / "en.jsonl").read_bytes())
    read, lines = [], streams.raw_lines
    monkeypatch.setattr(readers, "raw_lines", lambda *given: (read.append(line) or line for line in lines(*given)))
    words = r"en\.jsonl:1: .* under 'txet', got None; keys on this line: '_id', 'text'; so with all \d rows"
    changes = {field: "txet", "bad_lines": 100_000, "workers": 1}
    with pytest.raises(DataError, match=words) as caught:
        prepare(asked(tmp_path / "en.jsonl", given and tokenizer, tmp_path / "shards", **changes))
    assert "\n" not in str(caught.value)
    assert 0 < len(read) < 20
