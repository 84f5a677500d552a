from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.errors import DataError, SettingsError
from mcontriever.evaluation.measures import Measure, evaluate, mean, trec_order

MRR10, RECALL2, NDCG3 = Measure("MRR", 10), Measure("Recall", 2), Measure("nDCG", 3)


def oracle(run, qrels, measure):
    """trec_eval by its definition: score descending, then id descending; all queries of the qrels count."""
    values = {}
    for query, judged in qrels.items():
        ranked = sorted(run.get(query, {}).items(), key=lambda item: (item[1], item[0]), reverse=True)[: measure.k]
        gains = [max(judged.get(passage, 0), 0) for passage, _ in ranked]
        relevant = [grade for grade in judged.values() if grade > 0]
        if measure.name == "MRR":
            value = next((1 / rank for rank, gain in enumerate(gains, 1) if gain > 0), 0.0)
        elif measure.name == "Recall":
            value = sum(gain > 0 for gain in gains) / len(relevant) if relevant else 0.0
        else:
            ideal = sorted(relevant, reverse=True)[: measure.k]
            best = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(ideal, 1))
            value = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1)) / best if best else 0.0
        values[query] = value
    return values


def test_by_hand():
    run = {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0}, "not judged": {"a": 1.0}}
    qrels = {"q1": {"b": 1, "c": 1}, "q2": {"b": 1}, "q3": {"a": 1}}
    values = evaluate(run, qrels, [MRR10, RECALL2])
    assert values[MRR10] == {"q1": 0.5, "q2": 0.0, "q3": 0.0}
    assert values[RECALL2] == {"q1": 0.5, "q2": 0.0, "q3": 0.0}
    assert mean(values[MRR10]) == pytest.approx(1 / 6)


def test_ties_go_to_the_later_id_for_every_measure():
    run = {"q": {"d1": 1.0, "d2": 1.0}}
    assert evaluate(run, {"q": {"d1": 1}}, [MRR10])[MRR10]["q"] == 0.5
    assert evaluate(run, {"q": {"d2": 1}}, [MRR10])[MRR10]["q"] == 1.0
    for measure in (Measure("MRR", 1), Measure("Recall", 1), Measure("nDCG", 1)):
        assert evaluate(run, {"q": {"d1": 1}}, [measure])[measure]["q"] == 0.0
        assert evaluate(run, {"q": {"d2": 1}}, [measure])[measure]["q"] == 1.0


def test_scores_equal_as_float32_are_a_tie():
    assert [passage for passage, _ in trec_order({"d1": 1.0 + 1e-12, "d2": 1.0})] == ["d2", "d1"]


def test_empty_run_scores_zero_and_empty_qrels_are_refused():
    assert evaluate({}, {"q": {"a": 1}}, [RECALL2])[RECALL2] == {"q": 0.0}
    with pytest.raises(DataError, match="no query"):
        evaluate({}, {}, [RECALL2])


ids = st.sampled_from([f"p{number}" for number in range(8)] + ["é", "я"])


@settings(max_examples=60, deadline=None)
@given(
    run=st.dictionaries(
        st.sampled_from("uvwx"), st.dictionaries(ids, st.sampled_from([0.0, 0.5, 1.0, 2.0])), max_size=4
    ),
    qrels=st.dictionaries(st.sampled_from("uvw"), st.dictionaries(ids, st.integers(0, 2), min_size=1), min_size=1),
)
def test_agrees_with_the_oracle(run, qrels):
    measures = [Measure(name, k) for name in ("MRR", "Recall", "nDCG") for k in (1, 3, 100)]
    found = evaluate(run, qrels, measures)
    for measure in measures:
        assert found[measure] == pytest.approx(oracle(run, qrels, measure))


def test_parse():
    assert Measure.parse("nDCG@3") == NDCG3
    assert str(NDCG3) == "nDCG@3"
    for wrong, said in (("MRR", "must look like"), ("MRR@0", "must look like"), ("NDCG@3", "did you mean 'nDCG'")):
        with pytest.raises(SettingsError, match=said):
            Measure.parse(wrong)
