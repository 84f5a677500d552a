"""How well-known checkpoints must be used, since their own folders do not say it, and which are refused: data, no code.

Only single encoders of the architectures we load are in the first table. A folder's own files (sentence-transformers'
modules) are asked for the rules of use only where a name is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

from .contract import Rules

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Known:
    """One checkpoint: its `rules` of use, the commit they were checked at, whether it is only a start for training.

    `revision` is a whole hash, the only kind the hub serves, and what is downloaded unless another is asked for; where
    it is empty no such hash was at hand, and the hub's newest is taken. `projection` is what its folder must have.
    """

    rules: Rules = field(default_factory=lambda: Rules(pooling="mean", normalise=False, similarity="dot"))
    revision: str = ""
    start: bool = False
    projection: str = ""


@dataclass(frozen=True)
class Refused:
    """A family of checkpoints that is not loaded: why, and what to take in its place."""

    why: str
    instead: str


def _cosine(pooling: str, length: int, query: str = "", passage: str = "") -> Rules:
    return Rules(
        pooling=pooling,
        normalise=True,
        similarity="cosine",
        query_prefix=query,
        passage_prefix=passage,
        query_max_length=length,
        passage_max_length=length,
    )


_MDPR = Rules(pooling="cls", normalise=False, similarity="dot", passage_max_length=256)
_E5 = _cosine("mean", 512, "query: ", "passage: ")
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

# A name may hold "*", for a family whose members are used alike.
KNOWN = {
    # Masked language models: nobody trained their vectors for retrieval, they are where pretraining starts.
    "FacebookAI/xlm-roberta-base": Known(start=True),
    "FacebookAI/xlm-roberta-large": Known(start=True),
    "google-bert/bert-base-multilingual-cased": Known(start=True),
    "google-bert/bert-base-multilingual-uncased": Known(start=True),
    "google-bert/bert-base-uncased": Known(start=True),
    # Contriever: mean, dot, no normalisation.
    "facebook/mcontriever": Known(),
    "facebook/mcontriever-msmarco": Known(),
    "facebook/contriever": Known(),
    "facebook/contriever-msmarco": Known(revision="abe8c1493371369031bcb1e02acb754cf4e162fa"),
    "nthakur/mcontriever-base-msmarco": Known(),
    # mDPR and its relatives: first token.
    "castorini/mdpr-tied-pft-msmarco": Known(_MDPR),
    "castorini/mdpr-tied-pft-msmarco-ft-all": Known(_MDPR),
    "castorini/mdpr-tied-pft-msmarco-ft-miracl-*": Known(_MDPR),
    "castorini/afriberta-dpr-pft-msmarco-ft-latin-mrtydi": Known(_MDPR),
    # Cosine families.
    "intfloat/multilingual-e5-small": Known(_E5, "fd1525a9fd15316a2d503bf26ab031a61d056e98"),
    "intfloat/multilingual-e5-base": Known(_E5, "d13f1b27baf31030b7fd040960d60d909913633f"),
    "intfloat/multilingual-e5-large": Known(_E5, "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb"),
    "intfloat/multilingual-e5-large-instruct": Known(
        _cosine("mean", 512, _INSTRUCT), "baa7be480a7de1539afce709c8f13f833a510e0a"
    ),
    "BAAI/bge-m3": Known(_cosine("cls", 8192), "5617a9f61b028005a4858fdac845db406aefb181"),
    "BAAI/bge-m3-unsupervised": Known(_cosine("cls", 8192), "46f03bc86361cf88102b0b517b36c8259f2946b1"),
    "BAAI/bge-m3-retromae": Known(_cosine("cls", 8192)),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Known(
        _cosine("cls", 8192, "query: "), "edc2df7b6c25794b340229ca082e7c78782e6374"
    ),
    "sentence-transformers/LaBSE": Known(
        _cosine("cls", 256), "e34fab64a3011d2176c99545a93d5cbddc9a91b7", projection="tanh"
    ),
    # Their own folders leave vectors at their length and compare by cosine: the same order.
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Known(
        _cosine("mean", 128), "bf3bf13ab40c3157080a7ab344c831b9ad18b5eb"
    ),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": Known(
        _cosine("mean", 128), "79f2382ceacceacdf38563d7c5d16b9ff8d725d6"
    ),
    "ibm-granite/granite-embedding-107m-multilingual": Known(
        _cosine("cls", 512), "47db56afe692f731540413c67dd818ff492277e7"
    ),
    "ibm-granite/granite-embedding-278m-multilingual": Known(
        _cosine("cls", 512), "84e3546b88b0cb69f8078608a1df558020bcbf1f"
    ),
}

_CODE = "its model is code that comes with it, and such code is never run here"
_DECODER = "it is a decoder, and only encoders of XLM-R's and BERT's kinds are loaded here"
_TWO = "it is one of two encoders, one for queries and one for passages, and here one encoder serves both"

REFUSED = {
    "Alibaba-NLP/gte-multilingual-*": Refused(_CODE, "BAAI/bge-m3"),
    "Snowflake/snowflake-arctic-embed-m-v2.0": Refused(_CODE, "Snowflake/snowflake-arctic-embed-l-v2.0"),
    "nomic-ai/nomic-embed-text-v2-moe*": Refused(_CODE, "intfloat/multilingual-e5-base"),
    "jinaai/jina-embeddings-v3": Refused(_CODE, "BAAI/bge-m3"),
    "jinaai/jina-embeddings-v4*": Refused(_DECODER, "BAAI/bge-m3"),
    "Qwen/Qwen3-Embedding-*": Refused(_DECODER, "intfloat/multilingual-e5-large-instruct"),
    "google/embeddinggemma-*": Refused(
        "it is of Gemma 3's kind, and only encoders of XLM-R's and BERT's kinds are loaded here",
        "intfloat/multilingual-e5-base",
    ),
    "microsoft/harrier-oss-*": Refused(_DECODER, "intfloat/multilingual-e5-large-instruct"),
    "castorini/mdpr-question-nq": Refused(_TWO, "castorini/mdpr-tied-pft-msmarco"),
    "castorini/mdpr-passage-nq": Refused(_TWO, "castorini/mdpr-tied-pft-msmarco"),
}
# The same families in a folder of any name, by the model_type of its config.json.
REFUSED_TYPES = {
    "dpr": Refused(_TWO, "castorini/mdpr-tied-pft-msmarco"),
    "new": Refused(_CODE, "BAAI/bge-m3"),
    "gte": Refused(_CODE, "BAAI/bge-m3"),
    "nomic_bert": Refused(_CODE, "intfloat/multilingual-e5-base"),
    "xlm-roberta-flash": Refused(_CODE, "BAAI/bge-m3"),
    "qwen*": Refused(_DECODER, "intfloat/multilingual-e5-large-instruct"),
    "gemma*": Refused(_DECODER, "intfloat/multilingual-e5-large-instruct"),
}

_SHORT = {name.partition("/")[2]: name for name in KNOWN if KNOWN[name].start}


def find(name: str) -> Known | None:
    """The row of a hub name, at whatever @REVISION; the old names of the starts (`xlm-roberta-base`) still count."""
    return _row(KNOWN, full_name(name).partition("@")[0])


def like(name: str) -> str:
    """The known model that a folder of this name, whole or its last part, is probably a copy of; empty if none."""
    return next((known for known in KNOWN if "*" not in known and name in (known, known.partition("/")[2])), "")


def full_name(name: str) -> str:
    """The hub's present name of a start that is called by its old one, at whatever @REVISION; others as they are."""
    short, at, revision = name.partition("@")
    return _SHORT.get(short, short) + at + revision


def refused(name: str) -> Refused | None:
    """Why the model of a hub name is not loaded, if we know it for one that is not."""
    return _row(REFUSED, name.partition("@")[0])


def refused_type(model_type: object) -> Refused | None:
    """Why models of this model_type are not loaded, if we know it for one that is not."""
    return _row(REFUSED_TYPES, str(model_type))


def _row(table: dict[str, _Row], name: str) -> _Row | None:
    return next((row for pattern, row in table.items() if fnmatchcase(name, pattern)), None)
