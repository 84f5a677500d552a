"""Passages in every layout that corpora come in: what each gives, and that one bad line loses only itself."""

import gzip
import io
import json
import lzma
import os
import subprocess
import sys

import pytest

from mcontriever.corpus.formats import Passage
from mcontriever.corpus.passages import (
    BLOCK_BYTES,
    estimate_lines,
    passage_files,
    read_blocks,
    read_passages,
    unread_files,
)
from mcontriever.corpus.readers import BadLine
from mcontriever.errors import DataError

BEIR = '{"_id": "1", "title": "T", "text": "x", "metadata": {}}\n{"_id": 2, "title": "", "text": "y"}\n'
MIRACL = '{"docid": "1", "title": "T", "text": "x"}\n{"docid": "2", "text": "y"}\n'
MR_TYDI = '{"id": "1", "contents": "T\\n\\nx"}\n{"id": "2", "contents": "y"}\n'
DPR = 'id\ttext\ttitle\n1\tx\tT\n2\t"y"\t""\n'
MS_MARCO = '1\tx\n2\t"y" and \'z\n'
TWO = [("1", "T", "x"), ("2", "", "y")]


def read(path, **given):
    """(id, title, text) of the passages, and (where, problem) of the bad lines."""
    items = [item for block in read_blocks(path, **given) for _, item in block.passages()]
    good = [(item.id, item.title, item.text) for item in items if isinstance(item, Passage)]
    return good, [(item.where, item.problem) for item in items if isinstance(item, BadLine)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("corpus.jsonl", BEIR, TWO),
        ("docs-0.jsonl", MIRACL, TWO),
        ("docs.jsonl", MR_TYDI, TWO),
        ("psgs_w100.tsv", DPR, TWO),
        ("collection.tsv", MS_MARCO, [("1", "", "x"), ("2", "", '"y" and \'z')]),
        ("corpus.jsonl", "\ufeff" + BEIR.replace("\n", "\r\n") + "\n \n", TWO),
        ("psgs.tsv", "\ufeffid\ttitle\ttext\r\n1\tT\tx\r\n2\t\ty", TWO),
    ],
)
def test_every_layout(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / name) == read(tmp_path) == (expected, [])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    (tmp_path / f"{name}.xz").write_bytes(lzma.compress((tmp_path / name).read_bytes()))
    for suffix in ("gz", "xz"):
        assert read(tmp_path / f"{name}.{suffix}") == (expected, [])


def test_zstd_and_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pyarrow.CompressedOutputStream(str(tmp_path / "docs.jsonl.zst"), "zstd") as stream:
        stream.write(MIRACL.encode())
    assert read(tmp_path / "docs.jsonl.zst") == (TWO, [])
    rows = {"docid": [1, 2, 3], "title": ["T", None, "a"], "text": ["x", "y", None], "date": [b"a", b"b", b"c"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "docs.jsonl.zst").unlink()
    assert read(tmp_path)[0] == TWO
    assert read(tmp_path)[1][0][0] == "train-00000-of-00001.parquet:3"
    assert estimate_lines(passage_files(tmp_path)) == (3, True)
    parquet.write_table(pyarrow.table({"_id": ["1"], "text": [b"x"]}), tmp_path / "bytes.parquet")
    assert "expected text under 'text', got ['bytes']" in read(tmp_path / "bytes.parquet")[1][0][1]
    parquet.write_table(pyarrow.table({"number": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="other.parquet: expected columns one of _id, .*; its columns: number"):
        read(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ('1\t"a ""quoted"" word"\tT', ("1", "T", 'a "quoted" word')),
        ('1\tinside "quotes" stay\tT', ("1", "T", 'inside "quotes" stay')),
        ('"1"\t"with\ta tab"\t""', ("1", "", "with\ta tab")),
        ('1\t"never closed\tT', "cell 2 begins with a quote that is not closed"),
        ('1\t"closed" too early\tT', "cell 2 begins with a quote that is not closed"),
        ("1\tx", "expected 3 cells, id, text, title, got 2"),
        ("1\tx\tT\tmore", "expected 3 cells, id, text, title, got 4"),
        ("\tx\tT", "expected an '_id' (text), got ''"),
        ("1\t\t ", "the passage has neither title nor text"),
    ],
)
def test_cells_as_csv_writes_them(tmp_path, cells, expected):
    file = tmp_path / "psgs_w100.tsv"
    file.write_text(f"id\ttext\ttitle\n{cells}\n9\tgood\tG\n", newline="")
    good, bad = read(file)
    assert good[-1] == ("9", "G", "good")
    if isinstance(expected, tuple):
        assert good[0] == expected
        import csv

        assert next(csv.reader(io.StringIO(cells), delimiter="\t")) == [expected[0], expected[2], expected[1]]
    else:
        assert bad[0][0] == "psgs_w100.tsv:2"
        assert bad[0][1].startswith(expected)


def test_a_very_long_quoted_cell_is_read(tmp_path):
    text = 'word ""twice"" ' * 100_000
    (tmp_path / "psgs.tsv").write_text(f'id\ttext\n1\t"{text}"\n2\t"{text}\n')
    good, bad = read(tmp_path / "psgs.tsv")
    assert [len(text) for *_, text in good] == [13 * 100_000]
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b'{"_id": "1", "text": "\xff"}', "not UTF-8"),
        (b'{"_id": "1", "text": "\\ud800"}', "'text' holds half a surrogate pair"),
        (b'{"_id": "\\ud800", "text": "x"}', "the id holds half a surrogate pair"),
        (b'{"_id": "1", "text": null}', "expected text under 'text', got None"),
        (b'{"_id": "1", "text": ["x"]}', "expected text under 'text'"),
        (b'{"_id": "1", "text": " \\n"}', "the passage has neither title nor text"),
        (b'{"text": "x"}', "expected an '_id' (text), got None"),
        (b'{"_id": true, "text": "x"}', "expected an '_id' (text), got True"),
        (b'{"_id": "1", "body": "x"}', "expected text under 'text', got None; keys on this line: '_id', 'body'"),
        (b'["x"]', "expected a JSON object"),
    ],
)
def test_one_bad_line_loses_only_itself(tmp_path, line, problem):
    file = tmp_path / "corpus.en.jsonl"
    file.write_bytes(b'{"_id": "0", "text": "a"}\n' + line + b'\n{"_id": "2", "text": "b"}\n')
    good, bad = read(file)
    assert [name for name, *_ in good] == ["0", "2"]
    assert bad[0][0] == "corpus.en.jsonl:2"
    assert bad[0][1].startswith(problem)
    with pytest.raises(DataError) as caught:
        list(read_passages(file))
    assert str(caught.value).startswith(f"{file}:2: {problem}")


def test_blocks_cover_all_lines_once_and_change_with_their_own_lines_only(tmp_path):
    file = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": str(number), "text": "word"}) + "\n" for number in range(10)]
    lines[4] = "\n"
    file.write_text("".join(lines))
    blocks = list(read_blocks(file, lines=3))
    assert [(block.first_line, len(block.lines)) for block in blocks] == [(1, 3), (4, 3), (7, 3), (10, 1)]
    assert [line for block in blocks for line, _ in block.passages()] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    before = [block.digest for block in blocks]
    file.write_text("".join(lines).replace('"7"', '"x"'))
    after = [block.digest for block in read_blocks(file, lines=3)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert [block.digest for block in read_blocks(file, lines=3, language="sw")] != after


def test_a_block_of_long_lines_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.corpus.passages.BLOCK_BYTES", 100)
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"_id": str(number), "text": "x" * 60}) + "\n" for number in range(5)))
    assert [len(block.lines) for block in read_blocks(file)] == [2, 2, 1]
    assert BLOCK_BYTES == 64 * 2**20


def test_the_languages_of_passages(tmp_path):
    rows = '{"_id": "1", "text": "x"}\n{"_id": "2", "text": "y", "language": "ja"}\n'
    for name, expected in [("corpus.sw.jsonl", ["sw", "ja"]), ("docs.jsonl", ["yo", "ja"])]:
        (tmp_path / name).write_text(rows)
        blocks = read_blocks(tmp_path / name, language="yo")
        assert [item.language for block in blocks for _, item in block.passages()] == expected


def test_which_files_of_a_folder_are_read(tmp_path):
    for name in ("corpus.jsonl", "docs-1.jsonl.gz", "docs-0.jsonl.gz", "queries.jsonl", "topics.tsv", "README.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "train.jsonl").write_text("")
    assert [file.name for file in passage_files(tmp_path)] == ["corpus.jsonl", "docs-0.jsonl.gz", "docs-1.jsonl.gz"]
    assert unread_files(tmp_path) == ["train.jsonl"]
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match="notes.doc: not a kind of file"):
        passage_files(tmp_path / "notes.doc")


def test_lines_are_estimated_from_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr("mcontriever.corpus.passages._SAMPLED", 2**20)
    line = json.dumps({"_id": "1", "text": "word " * 50}) + "\n"
    files = [tmp_path / "docs-0.jsonl", tmp_path / "docs-1.jsonl", tmp_path / "docs-2.jsonl.gz"]
    files[0].write_text(line * 5000)
    files[1].write_text(line * 5000)
    assert estimate_lines(files[:2]) == (pytest.approx(10_000, rel=0.01), False)
    monkeypatch.setattr("mcontriever.corpus.passages._SAMPLED", 2**30)
    files[2].write_bytes(gzip.compress((line * 7).encode()))
    assert estimate_lines(files) == (10_007, True)


@pytest.mark.slow
@pytest.mark.parametrize("content", [BEIR, MIRACL, DPR])
def test_standard_input(content):
    script = (
        "from mcontriever.corpus.passages import read_passages, estimate_lines, passage_files\n"
        "assert estimate_lines(passage_files('-')) is None\n"
        "print([(each.id, each.title, each.text) for each in read_passages('-')])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], input=content.encode(), capture_output=True, check=True, env=environment
    )
    assert done.stdout.decode().strip() == str(TWO)
