from __future__ import annotations

import numpy as np
import pytest

from mcontriever.errors import DataError
from mcontriever.evaluation.runs import read_run, write_run


def test_round_trip_keeps_order_and_float32_scores(tmp_path):
    scores = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    run = {"q1": {f"p{n}": float(score) for n, score in enumerate(scores)}, "вопрос": {"パ": 1e-30, "ب": -3e7}}
    write_run(tmp_path / "run.trec", run, "mine")
    read = read_run(tmp_path / "run.trec")
    assert {q: {p: np.float32(s) for p, s in r.items()} for q, r in read.items()} == {
        q: {p: np.float32(s) for p, s in r.items()} for q, r in run.items()
    }
    first = (tmp_path / "run.trec").read_text(encoding="utf-8").splitlines()[0].split()
    assert first[1:] == ["Q0", f"p{scores.argmax()}", "1", str(scores.max()), "mine"]


def test_ties_are_written_in_trec_order(tmp_path):
    write_run(tmp_path / "run.trec", {"q": {"a": 1.0, "c": 1.0, "b": 2.0}}, "t")
    assert [line.split()[2] for line in (tmp_path / "run.trec").read_text().splitlines()] == ["b", "c", "a"]


@pytest.mark.parametrize("bad", ["two words", "tab\tid", "", "no\u00a0break"])
def test_ids_with_white_space_are_refused(tmp_path, bad):
    for run, tag in (({bad: {"p": 1.0}}, "t"), ({"q": {bad: 1.0}}, "t"), ({"q": {"p": 1.0}}, bad)):
        with pytest.raises(DataError, match="TREC run"):
            write_run(tmp_path / "run.trec", run, tag)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q Q0 p 1 2.0\n", ":1: has 5 fields"),
        ("q Q0 p 1 2.0 t\nq Q0 r 2 high t\n", ":2: score 'high'"),
        ("q Q0 p 1 nan t\n", ":1: score 'nan'"),
        ("q Q0 p 1 2 t\nq Q0 p 2 1 t\n", ":2: passage 'p' is listed twice"),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, said):
    (tmp_path / "run").write_text(text)
    with pytest.raises(DataError, match=said):
        read_run(tmp_path / "run")


def test_a_missing_file_and_a_binary_one(tmp_path):
    with pytest.raises(DataError, match="no such run"):
        read_run(tmp_path / "run")
    (tmp_path / "run").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_run(tmp_path / "run")
