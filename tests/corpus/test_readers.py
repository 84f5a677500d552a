"""Documents: what each format gives, that pieces give what the whole gives, and that every complaint names its line."""

import gzip
import itertools
import lzma
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import write
from reading import read_documents, read_hub

from mcontriever.corpus import readers, streams
from mcontriever.corpus.formats import Document
from mcontriever.corpus.readers import (
    BadLine,
    Piece,
    pieces,
    read_piece,
    stream_hub,
)
from mcontriever.errors import DataError, MissingExtra

LINES = [b"", b" ", "\u3000".encode(), b"\r", b"a", "é b".encode(), b"long line of text", b"\xff", b"\xe3"]
ROWS = [
    b"",
    b"  ",
    b'{"text": "a"}',
    b'{"text": "long text", "id": 7, "lang": "sw"}',
    b"[1]",
    b'{"text": "\xff"}',
    b"{",
]
no_deadline = settings(deadline=None, max_examples=60)


def write_parquet(path, rows, row_group_size=None):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def read(found, **options):
    return list(itertools.chain.from_iterable(read_piece(piece, **options) for piece in found))


def test_documents_of_a_folder_come_by_language_and_name(tmp_path):
    write(tmp_path / "sw.jsonl.gz", {"id": 7, "text": "Habari"})
    write(tmp_path / "corpus.ar.jsonl", {"_id": "a", "title": "ع", "text": "نص", "article": "x", "source": "?"})
    (tmp_path / "en.txt").write_text("One\ntwo\n\n\nThree", encoding="utf-8")
    (tmp_path / "fi").mkdir()
    (tmp_path / "fi" / "part-1.txt.xz").write_bytes(lzma.compress(b"Yksi\n\n"))
    write(tmp_path / "queries.en.jsonl", {"_id": "q", "text": "not a document"})
    (tmp_path / "README.md").write_text("not a document")
    assert list(read_documents(tmp_path)) == [
        Document("a", "ar", "ع\nنص", "x", "ع"),
        Document("en.txt:1", "en", "One\ntwo", None),
        Document("en.txt:5", "en", "Three", None),
        Document("part-1.txt.xz:1", "fi", "Yksi", None),
        Document("7", "sw", "Habari", None),
    ]


def test_the_layout_says_what_a_document_of_plain_text_is(tmp_path):
    (tmp_path / "en.txt").write_bytes(b"\xef\xbb\xbfOne\r\ntwo\r\n \nThree")
    assert [document.text for document in read_documents(tmp_path)] == ["One\ntwo", "Three"]
    assert list(read_documents(tmp_path, layout="lines")) == [
        Document("en.txt:1", "en", "One", None),
        Document("en.txt:2", "en", "two", None),
        Document("en.txt:4", "en", "Three", None),
    ]


def test_another_field_may_hold_the_text(tmp_path):
    file = write(tmp_path / "en.jsonl", {"id": "1", "raw_content": "b", "text": 5})
    assert [document.text for document in read_documents(file, "raw_content")] == ["b"]


def test_a_field_may_hold_the_language(tmp_path):
    rows = [
        {"text": "a", "meta": {"label": "sw"}},
        {"text": "b", "meta": {"label": "ar"}},
        {"text": "c", "meta.label": "zh-Hant"},
    ]
    file = write(
        tmp_path / "part-1.jsonl", *rows, {"text": "d", "meta": "sw"}, {"text": "e", "meta": {"label": "../x"}}
    )
    items = read(pieces(file, language_field="meta.label"), language_field="meta.label")
    assert [item.language for item in items[:3]] == ["sw", "ar", "zh-Hant"]
    assert items[3:] == [
        BadLine(
            f"{file}:4",
            "expected a language code such as sw under 'meta.label', got None; keys on this line: 'text', 'meta'",
        ),
        BadLine(f"{file}:5", "expected a language code such as sw under 'meta.label', got '../x'"),
    ]
    parquet = write_parquet(tmp_path / "part-2.parquet", rows[:2])
    items = read(pieces(parquet, language_field="meta.label"), language_field="meta.label")
    assert [item.language for item in items] == ["sw", "ar"]
    (tmp_path / "en.txt").write_text("a")
    with pytest.raises(DataError, match=r"en\.txt: text has no field 'meta\.label'"):
        pieces(tmp_path, language_field="meta.label")


def test_a_language_given_is_that_of_all_files(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a"})
    assert [document.language for document in read_documents(tmp_path, language="sw")] == ["sw"]


BAD_LINES = [
    (b'{"id": 1, "text": "\xff"}', "not UTF-8 (byte 0xff at position 19)"),
    (b'{"id": 1, "text": "a"', "not JSON"),
    (b'["a"]', "expected a JSON object, got list"),
    (b'{"id": 1, "txet": "a"}', "expected text under 'text', got None; keys on this line: 'id', 'txet'"),
    (b'{"id": 1, "text": "  "}', "'text' is empty"),
    (b'{"id": 1, "text": "\\ud800"}', "half a surrogate pair"),
    (b'{"id": 1, "text": "a", "article": [1]}', "'article' must be text, got list"),
    (b'{"id": [], "text": "a"}', "expected an '_id' (text), got []"),
    (b'{"id": 1, "text": [' + b"0, " * 1000 + b"0]}", "expected text under 'text', got [0, 0, 0"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD_LINES)
def test_a_bad_line_is_told_with_file_and_line_and_the_rest_is_read(tmp_path, line, complaint):
    file = tmp_path / "en.jsonl"
    file.write_bytes(b'{"id": 0, "text": "fine"}\n' + line + b'\n{"id": 2, "text": "fine"}\n')
    first, bad, last = read(pieces(file))
    assert (first.id, last.id) == ("0", "2")
    assert bad.where == f"{file}:2"
    assert complaint in bad.problem
    assert len(bad.problem) < 200
    with pytest.raises(DataError) as caught:
        list(read_documents(file))
    assert str(caught.value) == f"{bad.where}: {bad.problem}"


def test_a_document_with_a_bad_line_is_left_out_whole(tmp_path):
    file = tmp_path / "en.txt"
    file.write_bytes(b"a\n\nb\n\xff\nc\n\xff\n\nd\n")
    assert read(pieces(file)) == [
        Document("en.txt:1", "en", "a", None),
        BadLine(f"{file}:4", "not UTF-8 (byte 0xff at position 0); convert the file to UTF-8"),
        Document("en.txt:8", "en", "d", None),
    ]


def test_a_file_without_blank_lines_does_not_end_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 10)
    file = tmp_path / "en.txt"
    file.write_bytes(b"abc\n" * 9 + b"\nabc\n")
    bad, document = read(pieces(file))
    assert bad.where == f"{file}:3"
    assert "expected a blank line after each, or layout lines" in bad.problem
    assert document == Document("en.txt:11", "en", "abc", None)


@no_deadline
@given(st.lists(st.sampled_from([*LINES[:7], b"\xef\xbb\xbf"]), min_size=1), st.integers(1, 40))
def test_documents_of_cc100_are_what_blank_lines_part(tmp_path_factory, lines, target):
    file = tmp_path_factory.getbasetemp() / "cc100.txt"
    file.write_bytes(b"\n".join(lines))
    text = file.read_bytes().decode("utf-8-sig")
    expected = [
        part for part in re.split(r"\n(?:[^\S\n]*\n)+", f"\n\n{text}\n\n".replace("\r\n", "\n")) if part.strip()
    ]
    found = pieces(file, language="en", target_bytes=target) if file.stat().st_size else []
    if expected:
        assert [document.text.replace("\r", "") for document in read(found)] == [part.rstrip("\r") for part in expected]


@no_deadline
@given(
    lines=st.lists(st.sampled_from(LINES), min_size=1),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
    layout=st.sampled_from(["cc100", "lines"]),
    target=st.integers(1, 60),
    longest=st.sampled_from([5, 2**20]),
)
def test_pieces_of_text_give_what_the_whole_gives(tmp_path_factory, lines, end, layout, target, longest):
    file = tmp_path_factory.getbasetemp() / "pieces.txt"
    file.write_bytes(b"\n".join([b"first", *lines]) + end)
    check_pieces(file, target, longest, layout)


@no_deadline
@given(
    rows=st.lists(st.sampled_from(ROWS), min_size=1), target=st.integers(1, 60), longest=st.sampled_from([15, 2**20])
)
def test_pieces_of_rows_give_what_the_whole_gives(tmp_path_factory, rows, target, longest):
    file = tmp_path_factory.getbasetemp() / "pieces.jsonl"
    file.write_bytes(b"\n".join([*rows, b'{"text": "last"}']))
    check_pieces(file, target, longest)


def check_pieces(file, target, longest, layout="cc100"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "LONGEST", longest)
        found = pieces(file, language="en", layout=layout, target_bytes=target)
        whole = read([Piece(file, 0, None, "en", layout)])
        assert read(found) == whole
    assert [piece.start for piece in found[1:]] == [piece.stop for piece in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, None)


def test_large_files_are_cut_and_compressed_ones_are_not(tmp_path):
    rows = b"".join(b'{"text": "%d"}\n' % number for number in range(1000))
    (tmp_path / "en.jsonl").write_bytes(rows)
    (tmp_path / "sw.jsonl.gz").write_bytes(gzip.compress(rows))
    english, swahili = (
        [piece for piece in pieces(tmp_path, target_bytes=4000) if piece.language == language]
        for language in ("en", "sw")
    )
    assert len(english) == 4
    assert all(4000 <= piece.stop - piece.start < 4020 for piece in english[:-1])
    assert swahili == [Piece(tmp_path / "sw.jsonl.gz", 0, None, "sw")]
    assert len(pieces(tmp_path)) == 2


@pytest.mark.parametrize(("groups_a_piece", "count"), [(0.1, 7), (2.5, 4), (100, 1)])
def test_parquet_is_read_by_row_groups(tmp_path, groups_a_piece, count):
    rows = [{"id": f"{number:02}", "text": f"text {number:02}", "other": [number]} for number in range(25)]
    rows[13]["text"] = None
    file = write_parquet(tmp_path / "sw.parquet", rows, row_group_size=4)
    size = pytest.importorskip("pyarrow.parquet").ParquetFile(file).metadata.row_group(0).total_byte_size
    found = pieces(file, target_bytes=int(groups_a_piece * size))
    assert len(found) == count
    items = read(found)
    assert items.pop(13) == BadLine(
        f"{file}:14", "expected text under 'text', got None; keys on this line: 'id', 'text'"
    )
    assert items == [Document(row["id"], "sw", row["text"], None) for row in rows if row["text"]]


def test_parquet_that_cannot_be_read_is_an_error(tmp_path):
    file = write_parquet(tmp_path / "sw.parquet", [{"text": "word " * number} for number in range(500)])
    with pytest.raises(DataError, match=r"sw\.parquet: no column 'content'; its columns: text"):
        read(pieces(file), field="content")
    with pytest.raises(DataError, match=r"sw\.parquet: no column 'lang'; its columns: text"):
        read(pieces(file, language_field="lang"), language_field="lang")
    whole = file.read_bytes()
    file.write_bytes(whole[:30] + bytes(60) + whole[90:])
    with pytest.raises(DataError, match=r"sw\.parquet:1: the Parquet file is damaged: "):
        read(pieces(file))
    file.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"sw\.parquet: not a Parquet file, or a damaged one: "):
        pieces(file)
    with pytest.raises(DataError, match=r"en\.parquet: empty; expected documents"):
        pieces(write_parquet(tmp_path / "en.parquet", [{"text": "a"}][:0]))


def test_files_with_nothing_in_them_are_errors(tmp_path):
    file = tmp_path / "en.txt"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"en\.txt: empty; expected"):
        pieces(tmp_path)
    file.write_bytes(b"\n \n")
    with pytest.raises(DataError, match=r"en\.txt: no document in it, only blank lines"):
        list(read_documents(tmp_path))


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


def test_a_hub_dataset_may_hold_its_languages_in_a_field(tmp_path):
    pytest.importorskip("datasets")
    write(
        tmp_path / "train.jsonl", {"text": "a", "lang": "sw"}, {"text": "b", "lang": None}, {"text": "c", "lang": "ar"}
    )
    first, bad, last = stream_hub(str(tmp_path), "train", "", language_field="lang")
    assert (first.language, last.language) == ("sw", "ar")
    assert bad == BadLine(f"{tmp_path}[train]:2", "expected a language code such as sw under 'lang', got None")


@pytest.mark.parametrize("count", [3, 12])
def test_a_key_that_all_rows_lack_is_an_error_after_the_lines(tmp_path, monkeypatch, count):
    monkeypatch.setattr(readers, "_ENOUGH", 5)
    file, options = tmp_path / "sw.jsonl", {"field": "txet"}
    write(file, *[{"text": "a"}] * count)
    items = read_piece(*pieces(file), **options)
    first = min(count, 5)
    assert [next(items).where for _ in range(first)] == [f"{file}:{line}" for line in range(1, first + 1)]
    words = rf"sw\.jsonl:1: expected text under 'txet'.*keys on this line: 'text'; so with all {first} rows read"
    with pytest.raises(DataError, match=words):
        next(items)
    write(file, *[{"text": "a"}] * 3, {"txet": None}, {"text": "a"})  # a key that one row has is no slip of the pen
    assert len(read(pieces(file), **options)) == 5


def test_rows_of_a_dataset_that_all_lack_the_key_stop_its_stream(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr(readers, "_ENOUGH", 5)
    write(tmp_path / "train.jsonl", *[{"text": "a"}] * 9)
    items = stream_hub(str(tmp_path), "train", "sw", "txet")
    assert len(list(itertools.islice(items, 5))) == 5
    with pytest.raises(DataError, match=r"so with all 5 rows read of .*\[train\]; name another key with --field"):
        next(items)


def test_a_wrong_field_is_seen_beside_a_right_language_field(tmp_path):
    file = write_parquet(tmp_path / "part-1.parquet", [{"text": "a", "lang": "sw"}])
    with pytest.raises(DataError, match=r"no column 'txet'; its columns: text, lang"):
        read(pieces(file, language_field="lang"), field="txet", language_field="lang")


def test_a_missing_library_for_datasets_names_the_extra_that_reads_text(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mcontriever\[corpus\]'"):
        next(stream_hub(str(tmp_path), "train", "sw"))
