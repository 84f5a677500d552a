"""Lines of plain and compressed files: numbers, places, damage."""

import gzip
import lzma

import pytest

from mcontriever.corpus import streams
from mcontriever.corpus.streams import BadText, check_begins, decode, raw_lines, read_lines
from mcontriever.errors import DataError, MissingExtra

TEXT = b"".join(b"line %d of some text\n" % number for number in range(5000))
KINDS = {"gz": "gzip", "xz": "xz", "zst": "zstd"}


def compress(kind, data):
    if kind == "zst":
        pyarrow = pytest.importorskip("pyarrow")
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "xz": lzma.compress}[kind](data)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_files_give_the_lines_of_the_plain_one(tmp_path, kind):
    plain, file = tmp_path / "en.txt", tmp_path / f"en.txt.{kind}"
    plain.write_bytes(TEXT + b"last\n")
    file.write_bytes(compress(kind, TEXT) + compress(kind, b"last\n"))  # parts one after the other are one file
    assert list(raw_lines(file)) == list(raw_lines(plain))
    assert list(raw_lines(plain))[-1] == (5001, b"last\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_error_with_file_and_line(tmp_path, kind):
    whole, file = compress(kind, TEXT), tmp_path / f"en.txt.{kind}"
    flipped = bytearray(whole)
    flipped[5 if kind == "zst" else len(whole) // 2] ^= 0xFF  # Arrow writes zstd without a checksum
    for damaged in (whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"en\.txt\.{kind}:\d+: the {KINDS[kind]} file is damaged or cut short"):
            list(raw_lines(file))
    file.write_bytes(b"plain text")
    for read in (check_begins, lambda file: list(raw_lines(file))):
        with pytest.raises(DataError, match=rf"en\.txt\.{kind}:1: the {KINDS[kind]} file is damaged"):
            read(file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_compressed_part_must_be_another(tmp_path, kind):
    file = tmp_path / f"en.txt.{kind}"
    file.write_bytes(compress(kind, TEXT) + b"garbage")
    with pytest.raises(DataError, match="is damaged or cut short"):
        list(raw_lines(file))


def test_xz_files_may_be_padded(tmp_path):
    file = tmp_path / "en.txt.xz"
    file.write_bytes(compress("xz", b"a\n") + bytes(8) + compress("xz", b"b\n") + bytes(4))
    assert list(raw_lines(file)) == [(1, b"a\n"), (2, b"b\n")]


@pytest.mark.parametrize("kind", [*KINDS, ""])
def test_an_empty_file_is_an_error_before_it_is_read(tmp_path, kind):
    file = tmp_path / f"en.txt.{kind}".rstrip(".")
    file.write_bytes(compress(kind, b"") if kind else b"")
    with pytest.raises(DataError, match=r"en\.txt.*: empty; expected one document or more"):
        check_begins(file)


def test_a_part_of_a_file_is_the_lines_that_begin_in_it(tmp_path):
    file = tmp_path / "en.txt"
    file.write_bytes(b"ab\ncd\n\nef")
    assert list(raw_lines(file, 3, 7, 2)) == [(2, b"cd\n"), (3, b"\n")]
    assert list(raw_lines(file, 3, 8, 2)) == [(2, b"cd\n"), (3, b"\n"), (4, b"ef")]
    assert list(raw_lines(file, 7, None, 4)) == [(4, b"ef")]


def test_no_more_is_held_than_the_longest_line_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 4)
    file = tmp_path / "en.txt"
    file.write_bytes(b"abc\nabcdefghijklmnopqrst\nabc\nabcdefgh")
    lines = list(raw_lines(file))
    assert lines == [(1, b"abc\n"), (2, b"abcde"), (3, b"abc\n"), (4, b"abcde")]
    assert list(raw_lines(file, 25, None, 3)) == lines[2:]
    with pytest.raises(BadText, match="a line of more than"):
        decode(*lines[1])


def test_text_is_utf8_without_line_ends_and_byte_order_mark(tmp_path):
    file = tmp_path / "en.txt"
    file.write_bytes(b"\xef\xbb\xbfHello\r\n\xef\xbb\xbf\xff\n")
    lines = read_lines(file)
    assert next(lines) == (1, "Hello")
    with pytest.raises(DataError, match=r"en\.txt:2: not UTF-8 \(byte 0xff at position 3\)"):
        next(lines)


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    for name in ("en.txt", "en.txt.gz", "en.txt.xz", "en.txt.zst"):
        with pytest.raises(DataError, match="cannot be read: "):
            list(raw_lines(tmp_path / name))


def test_zstd_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    def missing(module, extra, purpose):
        raise MissingExtra(f"{purpose} needs {module}: pip install 'mcontriever[{extra}]'")

    monkeypatch.setattr(streams, "require", missing)
    with pytest.raises(MissingExtra, match=r"reading en\.txt\.zst needs pyarrow: pip install 'mcontriever\[corpus\]'"):
        list(raw_lines(tmp_path / "en.txt.zst"))
