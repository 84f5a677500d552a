"""Where a long text may be cut before it is tokenised, so that a megabyte of which 512 tokens are kept costs no more.

A cut must not change the ids before it. It cannot at a lone space between two letters or digits, where a tokenizer
normalises a piece of text at a time and splits it into words there before anything else; other tokenizers get no cut.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Some letters join what stands before or after them, a space too, into one character as a reader sees it (a grapheme),
# and normalisers work on these. The tests try every letter; of those beyond the basic plane we use none.
_SPACE = r"(?<=[^\W_\u0d4e\U00010000-\U0010ffff]) (?=[^\W_\u0e33\u0eb3\uff9e\uff9f\U00010000-\U0010ffff])"
_IDEOGRAPHS = r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"  # BERT puts spaces around each
_LOCAL = {"Precompiled", "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip"}
_RUNS_OF_SPACES = {"Regex": " {2,}"}
_INTO_WORDS = {"WhitespaceSplit", "BertPreTokenizer", "Whitespace", "Metaspace"}


def borders(backend: Any) -> re.Pattern[str] | None:
    """Where texts may be cut for this tokenizer (of the `tokenizers` library); None: nowhere that we know."""
    normalisers, splitters = _parts(backend.normalizer, "normalizers"), _parts(backend.pre_tokenizer, "pretokenizers")
    if not splitters or splitters[0]["type"] not in _INTO_WORDS or not splitters[0].get("split", True):
        return None
    spanning = (token.content for token in backend.get_added_tokens_decoder().values())
    if not all(map(_is_local, normalisers)) or any(re.search(r"[\s▁]", content) for content in spanning):
        return None
    apart = any(part.get("handle_chinese_chars") for part in normalisers)
    return re.compile(f"{_SPACE}|{_IDEOGRAPHS}" if apart else _SPACE)


def beginning(text: str, least: int, borders: re.Pattern[str]) -> str:
    """The text up to the first border after `least` characters; all of it where there is none."""
    border = borders.search(text, least) if len(text) > least else None
    return text[: border.start()] if border else text


def _is_local(part: dict[str, Any]) -> bool:
    return part["type"] in _LOCAL or (part["type"] == "Replace" and part["pattern"] == _RUNS_OF_SPACES)


def _parts(component: Any, inside: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    said = json.loads(component.__getstate__())
    return list(said[inside]) if said["type"] == "Sequence" else [said]
