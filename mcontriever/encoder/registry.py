"""How well-known checkpoints must be used, since their own folders do not say it: data, no code.

Only single encoders of the two architectures we load are here. A folder's own files (sentence-transformers' modules)
are asked only for names that are not in this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .contract import Rules

_E5 = "query: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclass(frozen=True)
class Known:
    """One checkpoint: its `rules` of use, the commit they were checked at, whether it is only a start for training.

    `revision` is a whole hash, the only kind the hub serves, and what is downloaded unless another is asked for; where
    it is empty no such hash was at hand, and the hub's newest is taken.
    """

    rules: Rules = field(default_factory=lambda: Rules(pooling="mean", normalise=False, similarity="dot"))
    revision: str = ""
    start: bool = False


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

KNOWN = {
    # Masked language models: nobody trained their vectors for retrieval, they are where pretraining starts.
    "FacebookAI/xlm-roberta-base": Known(start=True),
    "FacebookAI/xlm-roberta-large": Known(start=True),
    "google-bert/bert-base-multilingual-cased": Known(start=True),
    # Contriever: mean, dot, no normalisation.
    "facebook/mcontriever": Known(),
    "facebook/mcontriever-msmarco": Known(),
    "facebook/contriever": Known(),
    "facebook/contriever-msmarco": Known(revision="abe8c1493371369031bcb1e02acb754cf4e162fa"),
    "nthakur/mcontriever-base-msmarco": Known(),
    # mDPR and its relatives: first token.
    "castorini/mdpr-tied-pft-msmarco": Known(_MDPR),
    "castorini/mdpr-tied-pft-msmarco-ft-all": Known(_MDPR),
    "castorini/afriberta-dpr-pft-msmarco-ft-latin-mrtydi": Known(_MDPR),
    # Cosine families.
    "intfloat/multilingual-e5-small": Known(
        _cosine("mean", 512, _E5, "passage: "), "fd1525a9fd15316a2d503bf26ab031a61d056e98"
    ),
    "intfloat/multilingual-e5-base": Known(
        _cosine("mean", 512, _E5, "passage: "), "d13f1b27baf31030b7fd040960d60d909913633f"
    ),
    "intfloat/multilingual-e5-large": Known(
        _cosine("mean", 512, _E5, "passage: "), "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb"
    ),
    "intfloat/multilingual-e5-large-instruct": Known(
        _cosine("mean", 512, _INSTRUCT), "baa7be480a7de1539afce709c8f13f833a510e0a"
    ),
    "BAAI/bge-m3": Known(_cosine("cls", 8192), "5617a9f61b028005a4858fdac845db406aefb181"),
    "BAAI/bge-m3-unsupervised": Known(_cosine("cls", 8192), "46f03bc86361cf88102b0b517b36c8259f2946b1"),
    "BAAI/bge-m3-retromae": Known(_cosine("cls", 8192)),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Known(
        _cosine("cls", 8192, _E5), "edc2df7b6c25794b340229ca082e7c78782e6374"
    ),
}

_SHORT = {name.partition("/")[2]: name for name in KNOWN if KNOWN[name].start}


def find(name: str) -> Known | None:
    """The row of a hub name, at whatever @REVISION; the old names of the starts (`xlm-roberta-base`) still count."""
    name = name.partition("@")[0]
    return KNOWN.get(_SHORT.get(name, name))
