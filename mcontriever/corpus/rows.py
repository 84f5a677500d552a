"""What a row of JSON, Parquet or a Hugging Face dataset must hold; complaints are `BadText`, the reader adds where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import DataError
from .streams import BadText

_SHOWN = 80


def is_text(value: str) -> bool:
    """Whether the string is made of characters: half a surrogate pair (a byte that was no UTF-8) is none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn a `BadText` of the block into a `DataError` that says where."""
    try:
        yield
    except BadText as error:
        raise DataError(f"{where}: {error}") from error


def shown(value: object) -> str:
    """A value as Python writes it, short enough for one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python converts
        raise BadText(f"not JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise BadText(f"expected a JSON object, got {type(row).__name__}")
    return row


def id_of(row: dict[str, Any], keys: Sequence[str] = ("_id", "id")) -> str:
    """The value under the first of the keys that there is."""
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadText(f"expected an '_id' (text), got {shown(value)}")
    if isinstance(value, str) and not is_text(value):
        raise BadText("the id holds half a surrogate pair, which is no character")
    return str(value)


def text_of(row: dict[str, Any], key: str, default: str | None = None) -> str:
    """The text under `key`; without a `default` there must be some."""
    value = row.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        problem = f"expected text under {key!r}, got {shown(value)}; keys on this line: {keys_of(row)}"
        raise BadText(problem, "" if key in row else key)
    if not is_text(value):
        raise BadText(f"{key!r} holds half a surrogate pair, which is no character")
    return value


def keys_of(row: dict[str, Any]) -> str:
    """A row's keys, for a complaint."""
    return ", ".join(map(repr, row)) or "none"


def filled(row: dict[str, Any], key: str) -> str:
    """The text under `key`, which must be more than white space."""
    text = text_of(row, key)
    if not text.strip():
        raise BadText(f"{key!r} is empty")
    return text
