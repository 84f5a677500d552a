from __future__ import annotations

import gzip

import pytest

from mcontriever.corpus.formats import Passage, Query
from mcontriever.errors import DataError, UsageError
from mcontriever.evaluation.datasets import EvaluationSet, parse_pairs

HEADER = "query-id\tcorpus-id\tscore\n"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "corpus.en.jsonl", '{"_id": "e1", "title": "T", "text": "one"}\n{"_id": "e2", "text": "two"}\n')
    put(tmp_path / "corpus.sw.jsonl.gz", '{"_id": "s1", "title": "", "text": "moja"}\n')
    put(tmp_path / "queries.en.jsonl", '{"_id": "q1", "text": "one?"}\n{"_id": "q2", "text": "two?"}\n')
    put(tmp_path / "queries.sw.jsonl", '{"_id": "q2", "text": "mbili?"}\n{"_id": "q1", "text": "moja?"}\n')
    put(tmp_path / "queries.ar.jsonl", '{"_id": "q1", "text": "واحد؟"}\n')
    put(tmp_path / "qrels/test.en.tsv", HEADER + "q2\te2\t1\nq1\te1\t1\n")
    put(tmp_path / "qrels/test.sw.tsv", HEADER + "q1\ts1\t1\n")
    put(tmp_path / "qrels/train.en.tsv", HEADER + "q1\te1\t1\n")
    return tmp_path


def test_a_task_joins_queries_passages_and_the_passages_language_s_qrels(folder):
    task = EvaluationSet.open(folder).task("sw", "en", "test")
    assert task.name == "sw-en"
    assert task.queries == (Query("q2", "mbili?", "sw"), Query("q1", "moja?", "sw"))
    assert task.passages == (Passage("e1", "T", "one", "en"), Passage("e2", "", "two", "en"))
    assert task.qrels == {"q2": {"e2": 1}, "q1": {"e1": 1}}


def test_only_judged_queries_are_asked(folder):
    task = EvaluationSet.open(folder).task("en", "sw", "test")
    assert [query.id for query in task.queries] == ["q1"]
    assert task.passages == (Passage("s1", "", "moja", "sw"),)


def test_pairs(folder):
    found = EvaluationSet.open(folder)
    assert found.pairs("test") == [("en", "en"), ("sw", "sw"), ("ar", "en"), ("sw", "en")]
    assert found.pairs("train") == [("en", "en"), ("ar", "en"), ("sw", "en")]
    assert parse_pairs(["ar-en", "en-en"]) == [("ar", "en"), ("en", "en")]
    for wrong in ("ar", "ar-", "-en"):
        with pytest.raises(UsageError, match="must look like"):
            parse_pairs([wrong])


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        (("fi", "en", "test"), UsageError, "no queries.fi"),
        (("en", "fi", "test"), UsageError, "no corpus.fi"),
        (("en", "sw", "train"), UsageError, "no qrels/train.sw"),
        (("en", "en", "tset"), UsageError, "did you mean 'test'"),
        (("ar", "en", "test"), DataError, "query 'q2' .* is not in queries.ar.jsonl"),
    ],
)
def test_what_is_not_there_is_named(folder, task, error, said):
    with pytest.raises(error, match=said):
        EvaluationSet.open(folder).task(*task)


def test_qrels_of_another_corpus_are_refused(folder):
    put(folder / "qrels/test.en.tsv", HEADER + "q1\tother\t1\n")
    with pytest.raises(DataError, match="none of its passages"):
        EvaluationSet.open(folder).task("en", "en", "test")


@pytest.mark.parametrize("pattern", ["corpus.*", "queries.*", "qrels/*"])
def test_a_folder_that_lacks_a_part(folder, pattern):
    for file in folder.glob(pattern):
        file.unlink()
    with pytest.raises(DataError, match="expected a test set's folder"):
        EvaluationSet.open(folder)


def test_no_folder_and_a_file_twice(folder):
    with pytest.raises(DataError, match="no such folder"):
        EvaluationSet.open(folder / "absent")
    put(folder / "corpus.en.jsonl.gz", "{}\n")
    with pytest.raises(DataError, match="keep one of them"):
        EvaluationSet.open(folder)


def test_a_pair_given_twice_is_refused():
    assert parse_pairs(["ar-en", "en-ar", "en-en"]) == [("ar", "en"), ("en", "ar"), ("en", "en")]
    with pytest.raises(UsageError, match="pair 'ar-en' is given twice"):
        parse_pairs(["ar-en", "en-en", "ar-en"])
