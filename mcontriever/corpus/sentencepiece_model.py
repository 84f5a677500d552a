"""What is needed of a SentencePiece model file, read without protobuf, which nothing else here would need.

The library gives pieces and scores but not the normalisation table, and without that table the Rust tokenizer would
give other ids; so the few protobuf fields around it are walked by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import DataError

_TRAINER, _NORMALIZER = 2, 3  # fields of ModelProto
_MODEL_TYPE, _CHARSMAP = 3, 2  # fields of TrainerSpec and NormalizerSpec
_UNIGRAM = 1


@dataclass(frozen=True)
class SentencePieceModel:
    """The ordinary pieces with their scores (`<unk>`, `<s>` and `</s>` left out) and the normalisation table."""

    pieces: list[tuple[str, float]]
    charsmap: bytes

    @classmethod
    def read(cls, serialized: bytes, origin: str) -> SentencePieceModel:
        """Read a serialized unigram model whose first pieces are `<unk>`, `<s>`, `</s>`, as XLM-R's are."""
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
            model_type, charsmap = _UNIGRAM, b""
            for number, value in _fields(serialized):
                if number == _TRAINER and isinstance(value, bytes):
                    model_type = _int_of(dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM))
                if number == _NORMALIZER and isinstance(value, bytes):
                    charsmap = _bytes_of(dict(_fields(value)).get(_CHARSMAP, b""))
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(f"{origin}: not a SentencePiece model, or a damaged one") from error
        if model_type != _UNIGRAM:
            raise DataError(f"{origin}: a SentencePiece model of type {model_type}; expected a unigram one (type 1)")
        pieces = [(processor.id_to_piece(number), processor.get_score(number)) for number in range(len(processor))]
        first = [piece for piece, _ in pieces[:3]]
        if first != ["<unk>", "<s>", "</s>"]:
            raise DataError(f"{origin}: its first pieces are {first}; expected <unk>, <s>, </s> as in XLM-R")
        return cls(pieces[3:], charsmap)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protobuf message; fixed-width numbers come as their bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                number, at = _varint(message, at)
                yield key >> 3, number
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case other:
                raise ValueError(f"wire type {other}")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _int_of(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("expected a number")
    return value


def _bytes_of(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("expected bytes")
    return value
