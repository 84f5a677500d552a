"""Passages, queries and judgements: what each format gives, and that every complaint names file and line."""

import pytest
from preparing import write

from mcontriever.corpus.formats import Passage, Query, read_objects, read_qrels, read_queries
from mcontriever.corpus.passages import read_passages
from mcontriever.errors import DataError


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"_id": 1, "text": "\xff"}', "not UTF-8 (byte 0xff at position 20)"),
        (b'{"_id": 1, "text": "a"', "not JSON"),
        (b'["a"]', "expected a JSON object, got list"),
        (b'{"_id": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path, line, complaint):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"_id": 0}\n\n' + line + b"\n")
    rows = read_objects(file)
    assert next(rows) == (1, {"_id": 0})
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{file}:3: {complaint}")


def test_passages_of_a_file_and_of_a_folder(tmp_path):
    write(tmp_path / "corpus.fi.jsonl.gz", {"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "text": "y"})
    write(tmp_path / "corpus.jsonl", {"_id": "3", "title": None, "text": "z", "language": "ja"})
    write(tmp_path / "fi.jsonl", {"_id": "1", "text": "documents, not passages"})
    assert list(read_passages(tmp_path)) == [
        Passage("1", "T", "x", "fi"),
        Passage("2", "", "y", "fi"),
        Passage("3", "", "z", "ja"),
    ]
    assert [passage.id for passage in read_passages(tmp_path / "corpus.fi.jsonl.gz")] == ["1", "2"]


def test_bad_passages_are_errors(tmp_path):
    write(tmp_path / "corpus.en.jsonl", {"_id": "1", "text": "x"})
    write(tmp_path / "corpus.fi.jsonl", {"_id": "2", "text": "x"}, {"_id": "1", "text": "y"})
    with pytest.raises(DataError, match=r"corpus\.fi\.jsonl:2: the passage id '1' occurs already"):
        list(read_passages(tmp_path))
    with pytest.raises(DataError, match=r"p\.jsonl:1: expected an '_id'"):
        list(read_passages(write(tmp_path / "p.jsonl", {"text": "y"})))
    with pytest.raises(DataError, match=r"p\.jsonl:1: the passage has neither"):
        list(read_passages(write(tmp_path / "p.jsonl", {"_id": "1", "text": ""})))
    with pytest.raises(DataError, match=r"p\.jsonl: empty"):
        list(read_passages(write(tmp_path / "p.jsonl")))
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_passages(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no passages in it"):
        list(read_passages(tmp_path / "empty"))


def test_queries(tmp_path):
    file = write(tmp_path / "queries.sw.jsonl", {"_id": "q1", "text": "Nani?"})
    assert read_queries(file) == [Query("q1", "Nani?", "sw")]
    with pytest.raises(DataError, match=r"queries\.sw\.jsonl:2: the query id 'q1' occurs already"):
        read_queries(write(file, {"_id": "q1", "text": "a"}, {"_id": "q1", "text": "b"}))
    with pytest.raises(DataError, match="empty; expected one query a line"):
        read_queries(write(file))
    with pytest.raises(DataError, match="no such file"):
        read_queries(tmp_path / "nowhere")


def test_qrels(tmp_path):
    file = tmp_path / "test.en.tsv"
    header = "query-id\tcorpus-id\tscore\n"
    file.write_text(header + "q1\tp1\t1\nq1\tp2\t0\nq2\tp1\t2\nq1\tp1\t1\n")
    assert read_qrels(file) == {"q1": {"p1": 1, "p2": 0}, "q2": {"p1": 2}}
    for text, complaint in [
        ("q1\tp1\t1\n", ":1: expected the header query-id corpus-id score"),
        (header + "q1\tp1\n", ":2: expected query id, passage id and a whole number"),
        (header + "q1\tp1\tyes\n", ":2: expected query id"),
        (header + "q1\tp1\t1\tmore\n", ":2: expected query id"),
        (header + "q1\tp1\t1\nq1\tp1\t0\n", ":3: q1 p1 was judged 1 above, 0 here"),
        (header, ": no judgements in it"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError) as caught:
            read_qrels(file)
        assert str(caught.value).startswith(f"{file}{complaint}")
