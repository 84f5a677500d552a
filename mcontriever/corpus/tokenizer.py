"""Text to token ids and back, with one layout for every tokenizer we train or are given.

`transformers` would do, but it takes seconds to import and its ids depend on which of five files it finds first. Here
the Rust library underneath is used directly, a SentencePiece model is always laid out as XLM-R's (`<s>` 0, `<pad>` 1,
`</s>` 2, `<unk>` 3, every piece one higher than in SentencePiece, `<mask>` last), and what is saved is what
`AutoTokenizer` reads to the same ids.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import write_text
from ..errors import DataError
from .beginnings import beginning, borders
from .fingerprint import fingerprint
from .sentencepiece_model import SentencePieceModel

_JSON, _CONFIG, _WORDPIECE = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
_SENTENCEPIECE = "sentencepiece.bpe.model"  # the name transformers looks for; the model is a unigram one all the same
_EXPECTED = f"expected a folder with {_JSON}, {_SENTENCEPIECE} or {_WORDPIECE}, or one such file"

# bos, eos, pad, unk, mask of the two families whose encoders we read, and the class transformers reads them with
_FAMILIES = {
    "XLMRobertaTokenizer": ("<s>", "</s>", "<pad>", "<unk>", "<mask>"),
    "BertTokenizer": ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
}

# SentencePiece silently skips training lines over 4192 bytes: longer ones are cut. A character takes at most 4 bytes.
_PIECE_CHARACTERS = 1000
_COVERAGE = 0.9998

_CHARACTERS_PER_ID = 8  # more than text in any language has, seldom reached by tables and code


class Tokenizer:
    """A fixed mapping of text to ids. `load` or `train` makes one; special tokens are never part of what text gives."""

    def __init__(self, backend: Any, origin: str, sentencepiece: bytes | None = None) -> None:
        self._backend, self._sentencepiece = backend, sentencepiece
        backend.no_truncation()
        backend.no_padding()
        for name, tokens in _FAMILIES.items():
            ids = [backend.token_to_id(token) for token in tokens]
            if None not in ids:
                self._family = name
                self.bos, self.eos, self.pad, self.unk, self.mask = (int(number) for number in ids)
                break
        else:
            wanted = " or ".join(" ".join(tokens) for tokens in _FAMILIES.values())
            raise DataError(f"{origin}: the tokenizer lacks special tokens; expected {wanted}")
        self.vocab_size = int(backend.get_vocab_size())
        self._special = np.array([self.bos, self.eos, self.pad, self.mask], dtype=np.int32)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a folder in Hugging Face's layout, a bare SentencePiece `.model` or a BERT `vocab.txt`."""
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in (_JSON, _SENTENCEPIECE, _WORDPIECE) if (path / name).is_file()]
            if not found:
                raise DataError(f"{path}: no tokenizer in it; {_EXPECTED}")
            file = found[0]
        elif path.is_file():
            file = path
        else:
            raise DataError(f"{path}: no such file or folder; {_EXPECTED}")
        if file.suffix == ".json":
            beside = file.with_name(_SENTENCEPIECE)
            return cls(_read_json(file), str(file), beside.read_bytes() if beside.is_file() else None)
        if file.suffix == ".txt":
            return cls(_read_wordpiece(file), str(file))
        if file.suffix == ".model":
            return cls._of_sentencepiece(file.read_bytes(), str(file))
        raise DataError(f"{file}: not a tokenizer; {_EXPECTED}")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a SentencePiece unigram model. `vocab_size` counts everything, special tokens included.

        One thread and no shuffling: the same texts give the same bytes.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_pieces(texts),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size - 2,  # XLM-R's layout adds <pad> and <mask>
                character_coverage=_COVERAGE,
                normalization_rule_name="nmt_nfkc",
                shuffle_input_sentence=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(_why_not_trained(str(error), vocab_size)) from error
        return cls._of_sentencepiece(model.getvalue(), "the trained model")

    def save(self, folder: Path | str) -> None:
        """Write the files `AutoTokenizer.from_pretrained` reads, into the folder of an artifact being written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _JSON, self._backend.to_str(pretty=True))
        bos, eos, pad, unk, mask = _FAMILIES[self._family]
        config: dict[str, Any] = {
            "tokenizer_class": self._family,
            "cls_token": bos,
            "sep_token": eos,
            "pad_token": pad,
            "unk_token": unk,
            "mask_token": mask,
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
        }
        if self._family == "BertTokenizer":
            normalizer = json.loads(self._backend.to_str())["normalizer"] or {}
            config["do_lower_case"] = bool(normalizer.get("lowercase"))
            config["tokenize_chinese_chars"] = bool(normalizer.get("handle_chinese_chars", True))
            config["strip_accents"] = normalizer.get("strip_accents")
        else:
            config |= {"bos_token": bos, "eos_token": eos}
        write_text(folder / _CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        if self._sentencepiece is not None:
            (folder / _SENTENCEPIECE).write_bytes(self._sentencepiece)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, whole and without special tokens, also where a text spells one out ("</s>")."""
        return self._rows(self._backend.encode_batch_fast(list(texts), add_special_tokens=False))

    def encode_beginnings(self, texts: Sequence[str], count: int) -> list[NDArray[np.int32]]:
        """What `encode` gives, but of a long text perhaps only the first ids, always more than `count` of them."""
        if self._borders is None:
            return self.encode(texts)
        least = _CHARACTERS_PER_ID * count
        parts = [beginning(text, least, self._borders) for text in texts]
        rows = self.encode(parts)
        while short := [n for n, row in enumerate(rows) if len(row) <= count and len(parts[n]) < len(texts[n])]:
            least *= 4
            for number in short:
                parts[number] = beginning(texts[number], least, self._borders)
            for number, row in zip(short, self.encode([parts[number] for number in short]), strict=True):
                rows[number] = row
        return rows

    def encode_titled(self, texts: Sequence[str], titles: Sequence[int]) -> tuple[list[NDArray[np.int32]], list[int]]:
        """What `encode` gives, and how many ids of each text belong to its title, its first `titles` characters.

        The title is followed by white space; an id that covers some of what follows is none of the title's.
        """
        if not any(titles):
            return self.encode(texts), [0] * len(texts)
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)  # with offsets, but the same ids
        borders = []
        for text, title, encoding in zip(texts, titles, encodings, strict=True):
            after = (encoding.char_to_token(place) for place in range(title, len(text)))
            border = next((number for number in after if number is not None), len(encoding.ids)) if title else 0
            borders.append(border - int(np.isin(encoding.ids[:border], self._special).sum()))
        return self._rows(encodings), borders

    def _rows(self, encodings: Sequence[Any]) -> list[NDArray[np.int32]]:
        """Their ids without special tokens, which a text may spell out."""
        if not encodings:
            return []
        rows = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        lengths = np.array([len(row) for row in rows])
        flat = np.concatenate(rows)
        forbidden = np.isin(flat, self._special)
        if not forbidden.any():
            return rows
        ends = np.concatenate([[0], np.cumsum(~forbidden)])[np.cumsum(lengths)]
        return np.split(flat[~forbidden], ends[:-1])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._backend.decode([int(number) for number in ids], skip_special_tokens=True))

    @cached_property
    def pieces(self) -> tuple[list[str], NDArray[np.bool_]]:
        """The text of every id without its word mark, and (V,) whether a word begins with it; V ids."""
        pieces = [str(self._backend.id_to_token(number)) for number in range(self.vocab_size)]
        if self._family == "BertTokenizer":
            return [piece.removeprefix("##") for piece in pieces], np.array([piece[:2] != "##" for piece in pieces])
        return [piece.removeprefix("▁") for piece in pieces], np.array([piece[:1] == "▁" for piece in pieces])

    @cached_property
    def _borders(self) -> re.Pattern[str] | None:
        return borders(self._backend)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides ids: the vocabulary with its scores and merges, and the ids of probe texts."""
        special = [self.bos, self.eos, self.pad, self.unk, self.mask]
        return fingerprint(self._backend.to_str(), special, self.encode)

    @classmethod
    def _of_sentencepiece(cls, serialized: bytes, origin: str) -> Tokenizer:
        from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import Unigram

        model = SentencePieceModel.read(serialized, origin)
        specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        backend = Backend(Unigram([*specials, *model.pieces, ("<mask>", 0.0)], unk_id=3, byte_fallback=False))
        if model.charsmap:
            backend.normalizer = normalizers.Precompiled(model.charsmap)
        metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
        backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        plain = [AddedToken(token, special=True, normalized=False) for token, _ in specials]
        backend.add_special_tokens([*plain, AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
        backend.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A", "</s>"],
            pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
        return cls(backend, origin, serialized)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), _PIECE_CHARACTERS):
                if piece := line[start : start + _PIECE_CHARACTERS].replace("\0", " ").strip():
                    yield piece


def _why_not_trained(message: str, vocab_size: int) -> str:
    """SentencePiece counts two pieces fewer than we do: its advice is put into our numbers."""
    problem = f"cannot train a tokenizer of vocab_size {vocab_size} on this text"
    if most := re.search(r"value <= (\d+)", message):
        return f"{problem}: it is too little; give more text, or a vocab_size of at most {int(most[1]) + 2}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"{problem}: its characters alone need a vocab_size of at least {int(least[1]) + 2}"
    if "sentences_.empty()" in message:
        return f"{problem}: there is none"
    return f"{problem}: {message}"


def _read_json(file: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(f"{file}: not a tokenizer.json that this version of tokenizers reads: {error}") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: damaged: not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: damaged: expected a JSON object, got {type(content).__name__}; copy it again")
    return content


def _read_wordpiece(file: Path) -> Any:
    from tokenizers.implementations import BertWordPieceTokenizer

    try:
        words = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); expected a vocabulary") from error
    config = file.with_name(_CONFIG)
    stated = _read_config(config) if config.is_file() else {}
    # without a config the vocabulary itself tells: a lower-casing tokenizer could never produce an upper-case piece
    cased = any(word != word.lower() for word in words if not (word.startswith("[") and word.endswith("]")))
    lowercase = bool(stated.get("do_lower_case", not cased))
    try:
        backend = BertWordPieceTokenizer(
            {word: number for number, word in enumerate(words)},
            lowercase=lowercase,
            strip_accents=stated.get("strip_accents"),
            handle_chinese_chars=bool(stated.get("tokenize_chinese_chars", True)),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: not a BERT vocabulary: {error}") from error
    return backend._tokenizer
