"""Reading files: what each format gives, and that every complaint names file and line."""

import gzip
import json

import pytest

from mcontriever.corpus.formats import (
    Document,
    Passage,
    Query,
    read_documents,
    read_hub,
    read_passages,
    read_qrels,
    read_queries,
    unread_files,
)
from mcontriever.errors import DataError


def write(path, *rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_documents_of_a_folder_come_by_language_and_name(tmp_path):
    write(tmp_path / "sw.jsonl.gz", {"id": 7, "text": "Habari"})
    write(tmp_path / "corpus.ar.jsonl", {"_id": "a", "title": "ع", "text": "نص", "article": "x", "source": "?"})
    (tmp_path / "en.txt").write_text("One\ntwo\n\n\nThree", encoding="utf-8")
    write(tmp_path / "queries.en.jsonl", {"_id": "q", "text": "not a document"})
    (tmp_path / "README.md").write_text("not a document")
    assert list(read_documents(tmp_path)) == [
        Document("a", "ar", "ع\nنص", "x"),
        Document("en.txt:1", "en", "One\ntwo", None),
        Document("en.txt:5", "en", "Three", None),
        Document("7", "sw", "Habari", None),
    ]


def test_files_passed_over_are_known(tmp_path):
    for name in ("en.txt", "queries.sw.jsonl", "README.md", ".hidden"):
        (tmp_path / name).write_text("text")
    assert unread_files(tmp_path) == unread_files(tmp_path / "en.txt") == []
    mistaken = ["Swahili.jsonl", "fr.txt.xz", "passages.sw.jsonl", "sw.JSONL"]
    for name in mistaken:
        (tmp_path / name).write_text("text")
    assert unread_files(tmp_path) == mistaken
    assert [document.language for document in read_documents(tmp_path)] == ["en"]


def test_another_field_may_hold_the_text(tmp_path):
    file = write(tmp_path / "en.jsonl", {"id": "1", "body": "b", "text": 5})
    assert [document.text for document in read_documents(file, "body")] == ["b"]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "en.txt").write_bytes(b"\xef\xbb\xbfHello\r\n")
    assert [document.text for document in read_documents(tmp_path)] == ["Hello"]


BAD_LINES = [
    (b'{"id": 1, "text": "\xff"}', "not UTF-8 (byte 0xff at position 19)"),
    (b'{"id": 1, "text": "a"', "not JSON"),
    (b'["a"]', "expected a JSON object, got list"),
    (b'{"id": 1, "txet": "a"}', "expected text under 'text', got None; keys on this line: 'id', 'txet'"),
    (b'{"id": 1, "text": "  "}', "'text' is empty"),
    (b'{"id": 1, "text": "\\ud800"}', "half a surrogate pair"),
    (b'{"id": 1, "text": "a", "article": [1]}', "'article' must be text, got list"),
    (b'{"id": [], "text": "a"}', "expected an '_id' (text), got []"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD_LINES)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path, line, complaint):
    file = tmp_path / "en.jsonl"
    file.write_bytes(b'{"id": 0, "text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(read_documents(file))
    assert str(caught.value).startswith(f"{file}:2: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gzip_file_cut_short_is_an_error(tmp_path):
    whole = gzip.compress(b"".join(b"line %d of some text\n\n" % number for number in range(5000)))
    file = tmp_path / "en.txt.gz"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"en\.txt\.gz:\d+: the gzip file is damaged or cut short"):
        list(read_documents(file))
    file.write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"en\.txt\.gz:1: the gzip file is damaged"):
        list(read_documents(file))


def test_missing_empty_and_nameless_inputs_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    nameless = write(tmp_path / "everything.jsonl", {"id": "1", "text": "a"})
    for path, complaint in [
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "empty", "no documents in it; expected corpus.<lang>.jsonl"),
        (nameless, "its name states no language"),
    ]:
        with pytest.raises(DataError) as caught:
            list(read_documents(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert complaint in str(caught.value)


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


def test_a_hub_dataset_reads_like_a_folder(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", {"id": "1", "text": "a", "article": "x"}, {"id": "2", "text": "b", "article": None})
    assert list(read_hub(str(tmp_path), "train", "sw")) == [
        Document("1", "sw", "a", "x"),
        Document("2", "sw", "b", None),
    ]
    with pytest.raises(DataError, match=r"\[train\]:1: expected text under 'body'"):
        list(read_hub(str(tmp_path), "train", "sw", "body"))
    with pytest.raises(DataError, match="split 'nope'"):
        list(read_hub(str(tmp_path), "nope", "sw"))
