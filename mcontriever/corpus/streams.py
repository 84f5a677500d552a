"""Files as numbered lines of bytes, whatever they are compressed with; a damaged file is an error that says where.

Lines stay bytes here, so that a line that is no UTF-8 can be counted and passed over by who reads a whole crawl, and
stop who reads a list of questions. No line is held that is longer than `LONGEST`: a file without line ends would
otherwise end in memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError, require

STDIN = Path("/dev/stdin")
COMPRESSIONS = (".gz", ".zst", ".xz")
LONGEST = 64 * 2**20
"""Bytes of the longest line, and of the longest document, that is read."""

_BUFFER = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadText(Exception):
    """What is wrong with one line; the reader adds where it is.

    `lacks` is the key that was asked for, if the row has none of that name.
    """

    def __init__(self, problem: str, lacks: str = "") -> None:
        super().__init__(problem)
        self.lacks = lacks


def is_compressed(file: Path) -> bool:
    """Whether the file can only be read from its start."""
    return file.suffix in COMPRESSIONS


def open_stream(file: Path, disk: BinaryIO | None = None) -> BinaryIO:
    """The bytes of a file, decompressed as its last suffix says; its position tells how much of `disk` was read."""
    try:
        if file == STDIN:  # by its number: a socket has no name that opens
            return open(0, "rb", buffering=_BUFFER, closefd=False)
        if file.suffix == ".gz":
            return cast(BinaryIO, gzip.open(disk or file, "rb"))
        if file.suffix == ".xz":
            return io.BufferedReader(_Xz(disk or file.open("rb")), _BUFFER)
        if file.suffix == ".zst":
            pyarrow = require("pyarrow", "corpus", f"reading {file.name}")
            source = pyarrow.PythonFile(disk) if disk else pyarrow.OSFile(str(file), "rb")
            return io.BufferedReader(pyarrow.CompressedInputStream(source, "zstd"), _BUFFER)
        return disk or file.open("rb", buffering=_BUFFER)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def next_line(stream: BinaryIO) -> tuple[bytes, int]:
    """The next line, cut off after one byte more than `LONGEST`, and how many bytes it really has; none at the end."""
    kept = raw = stream.readline(LONGEST + 1)
    size = len(raw)
    while len(raw) > LONGEST and not raw.endswith(b"\n"):
        raw = stream.readline(LONGEST + 1)
        size += len(raw)
    return kept, size


def raw_lines(file: Path, start: int = 0, stop: int | None = None, first_line: int = 1) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their line ends, those that begin in bytes `start` to `stop` of the file; see `next_line`.

    `start` must be where line `first_line` begins; only of an uncompressed file may it be other than 0.
    """
    line, position = first_line, start
    with open_stream(file) as stream:
        if start:
            stream.seek(start)
        while stop is None or position < stop:
            with damage_located(file, line):
                raw, size = next_line(stream)
            if not raw:
                return
            yield line, raw
            line, position = line + 1, position + size


def check_begins(file: Path) -> None:
    """Complain about a file that is empty or damaged at its start, before any work is done on it."""
    with open_stream(file) as stream, damage_located(file, 1):
        if not stream.read(1):
            raise DataError(f"{file}: empty; expected one document or more")


@contextmanager
def damage_located(file: Path, line: int) -> Iterator[None]:
    """Turn what decompressing raises into a `DataError` with file and line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's and Arrow's own have none
            raise DataError(f"{file}:{line}: cannot be read: {error.strerror}") from error
        kind = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}.get(file.suffix, "")
        raise DataError(f"{file}:{line}: the {kind} file is damaged or cut short ({error}); copy it again") from error


def decode(line: int, raw: bytes) -> str:
    """A line's text without its line end and, in line 1, the byte order mark; `BadText` if it is not UTF-8."""
    if len(raw) > LONGEST:
        raise BadText(f"a line of more than {LONGEST // 2**20} MiB; expected one document a line")
    if line == 1:
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise BadText(f"not UTF-8 (byte 0x{byte:02x} at position {error.start}); convert the file to UTF-8") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their line ends; a bad one is an error."""
    for line, raw in raw_lines(file):
        try:
            yield line, decode(line, raw)
        except BadText as error:
            raise DataError(f"{file}:{line}: {error}") from error


class _Xz(io.RawIOBase):
    """An .xz file as bytes. Python's own reader takes a damaged second stream for the end of the file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._decompressor = raw, lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            given = b""
            if self._decompressor.eof:
                given = self._decompressor.unused_data.lstrip(b"\0") or self._raw.read(_BUFFER).lstrip(b"\0")
                if not given:
                    return 0
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._decompressor.needs_input:
                given = self._raw.read(_BUFFER)
                if not given:
                    raise EOFError("compressed data end in the middle")
            data = self._decompressor.decompress(given, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()
