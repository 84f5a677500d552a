"""Retrieval measures as trec_eval counts them: MRR@k, Recall@k, nDCG@k.

Three traps are closed here. Ties: a run is put in trec_eval's order (score, then passage id, both descending) and cut
to k before anything is measured, because ir_measures hands RR@k and R@k to two programs that break ties differently.
Missing queries: the mean is over the queries of the qrels, and one without results scores zero. Precision: scores are
compared as float32, as trec_eval holds them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, SettingsError, did_you_mean, require

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

_NAMES = ("MRR", "Recall", "nDCG")


@dataclass(frozen=True)
class Measure:
    """A measure and its cut, such as `MRR@10`."""

    name: str
    k: int

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From `MRR@10`, `Recall@100`, `nDCG@10`."""
        match = re.fullmatch(r"(\w+)@([1-9]\d*)", text)
        if not match:
            raise SettingsError(f"measure {text!r} must look like MRR@10, Recall@100 or nDCG@10")
        if match[1] not in _NAMES:
            raise SettingsError(f"unknown measure {match[1]!r}; {did_you_mean(match[1], _NAMES)}")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"


def evaluate(run: Run, qrels: Qrels, measures: Sequence[Measure]) -> dict[Measure, dict[str, float]]:
    """Each measure's value for every query of the qrels."""
    if not qrels:
        raise DataError("the qrels hold no query; nothing can be measured")
    library = require("ir_measures", "eval", "measuring")
    ordered = {query: trec_order(run[query]) for query in qrels if run.get(query)}
    result: dict[Measure, dict[str, float]] = {}
    for measure in measures:
        wanted = {
            "MRR": library.RR,  # uncut on purpose: the run is cut already, and RR@k would use another tie rule
            "Recall": library.R @ measure.k,
            "nDCG": library.nDCG @ measure.k,
        }[measure.name]
        cut = {query: dict(pairs[: measure.k]) for query, pairs in ordered.items()}
        values = dict.fromkeys(qrels, 0.0)
        if cut:
            for metric in library.pytrec_eval.iter_calc([wanted], qrels, cut):
                values[metric.query_id] = float(metric.value)
        result[measure] = values
    return result


def mean(values: Mapping[str, float]) -> float:
    """The mean over queries."""
    return float(np.mean(list(values.values())))


def trec_order(results: Mapping[str, float]) -> list[tuple[str, float]]:
    """(passage, score) pairs in trec_eval's order: score descending as float32, then id descending."""
    scores = np.fromiter(results.values(), dtype=np.float32, count=len(results)).tolist()
    return sorted(zip(results, scores, strict=True), key=lambda pair: (pair[1], pair[0].encode()), reverse=True)
