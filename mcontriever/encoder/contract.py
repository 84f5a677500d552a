"""What a checkpoint says about how it must be used, because a model used the wrong way still returns numbers.

Pooling, normalisation, prefixes, lengths and the tokenizer decide a score as much as the weights do. They travel beside
the weights, everything downstream takes them from here, and loading verifies that they still hold.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from .. import artifact
from ..errors import ArtifactError, did_you_mean

if TYPE_CHECKING:
    from ..corpus.tokenizer import Tokenizer

FILE = "contract.json"
POOLINGS = ("mean", "cls")
SIMILARITIES = ("dot", "cosine")
PROJECTIONS = ("", "tanh", "identity")
# One string a writing system, marks and joiners included: tokenizers that differ, differ somewhere here.
GOLDEN_TEXTS = (
    "The quick brown fox, 1984!",
    "Ni nani aliyegundua penisilini?",
    "من اكتشف البنسلين؟",
    "Кто открыл пенициллин?",
    "ペニシリンを発見したのは誰ですか。",
    "ক্যালেন্ডার ও పెన్సిలిన్",
    "ใครค้นพบเพนิซิลลิน",
)


class CheckpointError(ArtifactError):
    """A checkpoint is missing, damaged, of an unknown kind, or does not fit what it says of itself."""


class Rules(TypedDict, total=False):
    """The part of a contract that no file of a model states by itself and a person may have to give."""

    pooling: str
    normalise: bool
    similarity: str
    query_prefix: str
    passage_prefix: str
    title_joiner: str
    lowercase: bool
    query_max_length: int
    passage_max_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """How a checkpoint must be used."""

    architecture: str
    """Transformers' model_type: xlm-roberta, xlm-roberta-xl or bert."""
    dimension: int
    """Length of a vector."""
    pooling: str = "mean"
    """mean over all tokens, or cls, the first one."""
    projection: str = ""
    """What follows a linear map of the pooled vector, sentence-transformers' Dense: tanh or identity; empty: no map."""
    normalise: bool = False
    """Whether vectors are brought to length one. Contriever's are not: it costs them 7 to 8 points."""
    similarity: str = "dot"
    """dot, or cosine for vectors that are normalised."""
    query_prefix: str = ""
    """Put before every query."""
    passage_prefix: str = ""
    """Put before every passage, before its title."""
    title_joiner: str = " "
    """Put between a passage's title and its text."""
    lowercase: bool = False
    """Whether texts are lower-cased before the tokenizer sees them."""
    query_max_length: int = 512
    """Tokens of a query, the two special ones included; the rest is cut."""
    passage_max_length: int = 512
    """Tokens of a passage, the two special ones included; the rest is cut."""
    tokenizer_fingerprint: str
    """Hash of what decides the tokenizer's ids."""
    golden: tuple[tuple[str, tuple[int, ...]], ...]
    """A few texts with the ids the tokenizer gave them."""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            if name != "golden" and type(getattr(self, name)) is not kind:
                raise CheckpointError(f"contract: {name} must be {kind.__name__}, got {getattr(self, name)!r}")
        if self.pooling not in POOLINGS:
            raise CheckpointError(f"contract: pooling must be mean or cls, got {self.pooling!r}")
        if self.projection not in PROJECTIONS:
            raise CheckpointError(f"contract: projection must be tanh, identity or empty, got {self.projection!r}")
        if self.similarity not in SIMILARITIES:
            raise CheckpointError(f"contract: similarity must be dot or cosine, got {self.similarity!r}")
        if self.similarity == "cosine" and not self.normalise:
            raise CheckpointError("contract: similarity cosine needs normalise = true, for indexes take dot products")
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise CheckpointError(f"contract: {name} must be 3 or more, got {getattr(self, name)}")

    @classmethod
    def of(
        cls,
        config: Any,
        tokenizer: Tokenizer,
        *,
        projection: str = "",
        dimension: int | None = None,
        **rules: typing.Unpack[Rules],
    ) -> Contract:
        """The contract of a model with this configuration and tokenizer, used by these rules.

        A projection gives vectors of `dimension`; without one they have the model's own.
        """
        room = positions(config)
        rules.setdefault("query_max_length", min(512, room))
        rules.setdefault("passage_max_length", min(512, room))
        return cls(
            architecture=config.model_type,
            dimension=config.hidden_size if dimension is None else dimension,
            projection=projection,
            tokenizer_fingerprint=tokenizer.fingerprint,
            golden=_golden(tokenizer, GOLDEN_TEXTS),
            **rules,
        )

    @classmethod
    def read(cls, folder: Path) -> Contract:
        """The contract lying in a checkpoint's folder; a key we do not know is an error, for it may change results."""
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid JSON ({error}); copy the folder again") from error
        return cls._from(content, path)

    @classmethod
    def _from(cls, content: Any, path: Path) -> Contract:
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: must hold one JSON object")
        hints = typing.get_type_hints(cls)
        for key in content:
            if key not in hints:
                near = did_you_mean(key, hints)
                raise CheckpointError(f"{path}: unknown key {key!r} (a newer mcontriever's?); {near}")
        required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in content]
        if missing:
            raise CheckpointError(f"{path}: missing {', '.join(missing)}")
        try:
            if not content["golden"]:
                raise ValueError("none")
            content["golden"] = tuple((str(text), tuple(map(int, ids))) for text, ids in content["golden"])
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: golden must be a list of [text, [ids]] pairs, not empty") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `contract.json` into a folder."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)
        artifact.write_text(Path(folder) / FILE, text + "\n")

    def verify(self, tokenizer: Tokenizer, config: Any) -> None:
        """Complain, saying what differs, unless this model and tokenizer are the ones the contract is about."""
        facts: Mapping[str, tuple[object, object]] = {
            "architecture": (self.architecture, config.model_type),
            "dimension": (self.dimension, self.dimension if self.projection else config.hidden_size),
            "tokenizer_fingerprint": (self.tokenizer_fingerprint, tokenizer.fingerprint),
        }
        for name, (said, found) in facts.items():
            if said != found:
                raise CheckpointError(f"contract says {name} {said!r}, the files beside it say {found!r}")
        for (text, said_ids), (_, ids) in zip(
            self.golden, _golden(tokenizer, [text for text, _ in self.golden]), strict=True
        ):
            if said_ids != ids:
                raise CheckpointError(
                    f"the tokenizer turns {text!r} into {list(ids)}, the contract says {list(said_ids)}; "
                    "another version of the tokenizers library reads this tokenizer differently"
                )
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(f"the tokenizer knows {tokenizer.vocab_size} ids, the model {config.vocab_size}")
        if config.model_type.startswith("xlm-roberta") and tokenizer.pad != config.pad_token_id:
            # its positions are counted from there; BERT's are not, and E5's small one states another id than it uses
            raise CheckpointError(
                f"the tokenizer pads with id {tokenizer.pad}, the model with {config.pad_token_id}; "
                "it is another model's tokenizer"
            )
        longest = max(self.query_max_length, self.passage_max_length)
        if longest > positions(config):
            raise CheckpointError(f"contract allows {longest} tokens, the model has {positions(config)} positions")

    def query_text(self, text: str) -> str:
        """A query as the tokenizer must see it."""
        return self._cased(self.query_prefix + text)

    def passage_text(self, text: str, title: str = "") -> str:
        """A passage as the tokenizer must see it."""
        return self._cased(self.passage_prefix + self.titled(text, title))

    def titled(self, text: str, title: str = "") -> str:
        """A passage's title, if it has one, and its text in one: without prefix, its case kept."""
        return f"{title}{self.title_joiner}{text}" if title else text

    def in_words(self) -> str:
        """The contract for a person to read, a line a fact."""
        made = "mean of all tokens" if self.pooling == "mean" else "first token"
        if self.projection:
            made += ", projected" + (f" through {self.projection}" if self.projection != "identity" else "")
        length = "brought to length one" if self.normalise else "left at their length"
        passage = f"title{self.title_joiner!r}text, {self.passage_max_length} tokens at most"
        lines = {
            "architecture": f"{self.architecture}, {self.dimension} dimensions",
            "vectors": f"{made}, {length}",
            "similarity": "dot product" if self.similarity == "dot" else "cosine",
            "queries": f"{_prefix(self.query_prefix)}text, {self.query_max_length} tokens at most",
            "passages": _prefix(self.passage_prefix) + passage,
            "case": "lower-cased" if self.lowercase else "kept",
            "tokenizer": self.tokenizer_fingerprint[:16],
        }
        return "\n".join(f"{name + ':':14}{fact}" for name, fact in lines.items())

    def _cased(self, text: str) -> str:
        return text.lower() if self.lowercase else text


def positions(config: Any) -> int:
    """How many tokens the model has positions for."""
    return int(config.max_position_embeddings) - first_position(config)


def first_position(config: Any) -> int:
    """The position of a sequence's first token: XLM-R never uses those up to the padding id."""
    return int(config.pad_token_id) + 1 if config.model_type.startswith("xlm-roberta") else 0


def _golden(tokenizer: Tokenizer, texts: typing.Sequence[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (text, tuple(int(id) for id in ids)) for text, ids in zip(texts, tokenizer.encode(list(texts)), strict=True)
    )


def _prefix(prefix: str) -> str:
    return f"{prefix!r} + " if prefix else ""
