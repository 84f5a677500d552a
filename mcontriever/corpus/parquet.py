"""Parquet files, read a row group at a time: a file is never held whole, and its groups are where it may be cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, require

_ROWS = 256
_BUFFER = 2**20


def parquet_pieces(file: Path, target_bytes: int) -> Iterator[tuple[int, int | None, int]]:
    """First row group, the one after the last (None: to the end) and first row of pieces of about that many bytes."""
    metadata = _open(file).metadata
    if not metadata.num_rows:
        raise DataError(f"{file}: empty; expected documents")
    start, row, size, rows = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        if size and size + facts.total_byte_size > target_bytes:
            yield start, group, row
            start, row, size, rows = group, row + rows, 0, 0
        size += facts.total_byte_size
        rows += facts.num_rows
    yield start, None, row


def parquet_rows(file: Path, start: int, stop: int | None, first_row: int, keys: set[str]) -> Iterator[tuple[int, Any]]:
    """Numbered rows of some row groups with those of the `keys` that the file has."""
    parquet = _open(file)
    groups = range(start, parquet.metadata.num_row_groups if stop is None else stop)
    columns = [name for name in parquet.schema_arrow.names if name in keys]
    row = first_row
    try:
        for batch in parquet.iter_batches(_ROWS, row_groups=groups, columns=columns, use_threads=False):
            for values in batch.to_pylist():
                yield row, values
                row += 1
    except (OSError, ValueError) as error:  # Arrow's own errors are one or the other
        why = " ".join(str(error).split())
        raise DataError(f"{file}:{row}: the Parquet file is damaged: {why}") from error


def column_names(file: Path) -> list[str]:
    """The columns of a file."""
    return list(_open(file).schema_arrow.names)


def parquet_count(file: Path) -> int:
    """How many rows a file has."""
    return int(_open(file).metadata.num_rows)


def _open(file: Path) -> Any:
    parquet = require("pyarrow.parquet", "corpus", f"reading {file.name}")
    try:
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)  # else row groups are read whole
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{file}: not a Parquet file, or a damaged one: {why}") from error
